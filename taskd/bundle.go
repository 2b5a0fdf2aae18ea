package taskd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/task"
)

// bundlesName is containerd's, because shims look for their siblings by it.
const bundlesName = "io.containerd.runtime.v2.task"

// The files of a bundle. All but taskFile are containerd's.
const (
	configFile    = "config.json"
	rootfsName    = "rootfs"
	workName      = "work"
	logFile       = "log"
	binaryFile    = "shim-binary-path"
	bootstrapFile = "bootstrap.json"
	addressFile   = "address" // a shim's own word of where it listens
	taskFile      = "task.json"
)

// Modes of directories. A container with a user namespace passes through the
// parents of its bundle as somebody else; nobody may list them.
const (
	parentMode = 0o711
	bundleMode = 0o700
)

// A bundle is the directory of a task.
type bundle struct {
	namespace, id string
	dir           string
	work          string // on the disk that outlives a boot
}

// bundle returns the bundle of a task. Namespace and id become names in a
// directory, so that they are checked here, whoever checked them before.
func (s *Store) bundle(namespace, id string) (bundle, error) {
	if err := errors.Join(ident.Check(namespace), ident.Check(id)); err != nil {
		return bundle{}, err
	}
	return bundle{
		namespace: namespace,
		id:        id,
		dir:       filepath.Join(s.cfg.State, bundlesName, namespace, id),
		work:      filepath.Join(s.cfg.Root, bundlesName, namespace, id),
	}, nil
}

func (b bundle) file(name string) string { return filepath.Join(b.dir, name) }

// errTaken is that there is a bundle of which nothing is known.
var errTaken = fmt.Errorf("a bundle is there that nobody knows: %w", errdefs.ErrAlreadyExists)

// make makes the bundle. The record comes last: a bundle without one has never
// had a shim.
func (b bundle) make(d disk, spec []byte, r record) error {
	if err := d.MkdirAll(filepath.Dir(b.dir), parentMode); err != nil {
		return err
	}
	if err := d.Mkdir(b.dir, bundleMode); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", b.dir, errTaken)
	} else if err != nil {
		return err
	}
	gid, mapped, err := rootGroup(spec)
	if err != nil {
		return err
	}
	if mapped {
		if err := d.Share(b.dir, gid); err != nil {
			return err
		}
	}
	if err := d.MkdirAll(b.work, parentMode); err != nil {
		return err
	}
	if err := d.Symlink(b.work, b.file(workName)); err != nil {
		return err
	}
	if err := d.Mkdir(b.file(rootfsName), parentMode); err != nil {
		return err
	}
	if err := d.Mkfifo(b.file(logFile)); err != nil {
		return err
	}
	if err := d.WriteFile(b.file(configFile), spec); err != nil {
		return err
	}
	if err := d.WriteFile(b.file(binaryFile), []byte(r.Binary)); err != nil {
		return err
	}
	return b.save(d, r)
}

// rootGroup returns the group that root of the container's user namespace is
// outside of it, if it has one.
func rootGroup(spec []byte) (gid int, mapped bool, err error) {
	if !bytes.Contains(spec, []byte("gidMappings")) {
		return 0, false, nil
	}
	var c struct {
		Linux struct {
			GIDMappings []struct {
				ContainerID uint32 `json:"containerID"`
				HostID      uint32 `json:"hostID"`
				Size        uint32 `json:"size"`
			} `json:"gidMappings"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(spec, &c); err != nil {
		return 0, false, fmt.Errorf("container spec: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, m := range c.Linux.GIDMappings {
		if m.ContainerID == 0 && m.Size > 0 {
			return int(m.HostID), true, nil
		}
	}
	return 0, false, nil
}

// trash is where the bundle is on its way out.
func (b bundle) trash(instance string) string {
	return filepath.Join(filepath.Dir(b.dir), "."+b.id+"-"+instance)
}

// remove takes the bundle out of sight and returns where it is until its
// removal is completed. It is gone for everybody when remove returns.
func (b bundle) remove(d disk, instance string) (trash string, err error) {
	// The bundle last: it is what is found again after a crash.
	if err := d.RemoveTree(b.work); err != nil {
		return "", err
	}
	trash = b.trash(instance)
	if err := d.Rename(b.dir, trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return trash, nil
}

// A record is what is known of a task, in its bundle. It says how far the
// task's creation or removal has come.
type record struct {
	Instance string      `json:"instance"` // tells two tasks of one id apart
	State    recordState `json:"state"`
	Binary   string      `json:"binary"` // of the shim; absolute
	Shim     process     `json:"shim"`   // zero until there is one
	Pid      uint32      `json:"pid,omitempty"`
	IO       task.IO     `json:"io"`
	Exit     *task.Exit  `json:"exit,omitempty"` // of a task that is being deleted, if it is known

	// Activation is the name under which mounts were made for the task, or may
	// have been.
	Activation string `json:"activation,omitempty"`
}

// A recordState is how far a task has come.
type recordState string

const (
	creating recordState = "creating" // nobody has been told of the task yet
	created  recordState = "created"
	deleting recordState = "deleting" // it has been asked for, and goes on
)

// A process is one for good: pids come again, times of birth do not.
type process struct {
	Pid   int    `json:"pid"`
	Birth uint64 `json:"birth"` // in clock ticks since boot
}

// save writes the record.
func (b bundle) save(d disk, r record) error {
	j, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return d.Replace(b.file(taskFile), j)
}

// load reads the record: [fs.ErrNotExist] if there never was one.
func (b bundle) load() (record, error) {
	j, err := os.ReadFile(b.file(taskFile))
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(j, &r); err != nil {
		return r, fmt.Errorf("%s: %w", b.file(taskFile), err)
	}
	return r, nil
}

// saveAddress writes where the shim listens.
func (b bundle) saveAddress(d disk, a task.ShimAddress) error {
	j, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return d.Replace(b.file(bootstrapFile), j)
}

// address reads where the shim listens. A shim's own word serves if the daemon
// ended before it wrote down what it had been told.
func (b bundle) address() (task.ShimAddress, error) {
	var a task.ShimAddress
	j, err := os.ReadFile(b.file(bootstrapFile))
	if err == nil {
		return a, json.Unmarshal(j, &a)
	}
	word, addressErr := os.ReadFile(b.file(addressFile))
	if addressErr != nil {
		return a, err
	}
	return task.ShimAddress{Version: 3, Address: strings.TrimSpace(string(word)), Protocol: "ttrpc"}, nil
}
