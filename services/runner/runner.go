// Package runner is the contract of the process beside a container, as the
// process itself sees it: it runs what a bundle describes, keeps its streams
// and its exit, and tells what happened. Who drives it, and over which wire, is
// not its business.
package runner

import (
	"context"
	"time"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// Options say how the OCI runtime is called.
type Options struct {
	Binary        string `json:"binary,omitempty"` // a name to be found in $PATH, or a path; empty is runc
	Root          string `json:"root,omitempty"`   // where the runtime keeps its state, per namespace below it; empty is the runner's choice
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
	NoPivotRoot   bool   `json:"no_pivot_root,omitempty"`
	NoNewKeyring  bool   `json:"no_new_keyring,omitempty"`
	IOUID         uint32 `json:"io_uid,omitempty"` // owner of the pipes that are the process's streams
	IOGID         uint32 `json:"io_gid,omitempty"`
}

// A CreateRequest says what to create.
type CreateRequest struct {
	ID         string
	Bundle     string // absolute; holds config.json
	Rootfs     []mount.Mount
	IO         task.IO
	Checkpoint string // directory to restore from
	Options    Options
}

// A State is a process and where its bundle is.
type State struct {
	task.Process
	Bundle string
}

// A Runner runs tasks.
//
// Promises that hold for every method:
//   - A missing task or exec is [errdefs.ErrNotFound].
//   - Methods may be called from any goroutine.
//   - A caller that goes away ends its own Create and no other call: what has
//     begun is brought to its end, and the same call again finds that.
type Runner interface {
	Tasks
	task.Processes
	Controls

	// Shutdown ends the runner if it has no task, and does nothing if it has.
	Shutdown(ctx context.Context) error
}

// Tasks come and go.
type Tasks interface {
	// Create mounts the root file system in the bundle and makes a task that
	// has not started: [errdefs.ErrAlreadyExists] if there is one of that id,
	// [errdefs.ErrInvalidArgument] if the OCI runtime is not installed or
	// refuses. A Create that fails leaves nothing behind.
	Create(ctx context.Context, r CreateRequest) (pid uint32, err error)

	// Delete removes a task that is not running and all that it had on the
	// node: [errdefs.ErrFailedPrecondition] if it runs. Its answer is kept:
	// the same call again has the same result until the runner ends or makes
	// another task of that id.
	Delete(ctx context.Context, id string) (task.Exit, error)

	// State returns a process.
	State(ctx context.Context, id, exec string) (State, error)
}

// Controls act on a task as a whole.
type Controls interface {
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Pids(ctx context.Context, id string) ([]Pid, error)
	Update(ctx context.Context, id string, resources typed.Value) error
	Checkpoint(ctx context.Context, id, path string) error
	Stats(ctx context.Context, id string) (Stats, error)
}

// A Pid is a process in a task and, if Exec added it, its id.
type Pid struct {
	Pid  uint32
	Exec string
}

// An Event is a fact about a task, told in the order in which it became true.
// The fields that a topic does not need are empty.
type Event struct {
	Topic Topic `json:"topic"`

	// Time is unique among the events of one runner, so that it tells two
	// events apart and one event told twice is known again.
	Time time.Time `json:"time"`

	ContainerID string        `json:"container_id"`
	ExecID      string        `json:"exec_id,omitempty"`
	Pid         uint32        `json:"pid,omitempty"`
	Bundle      string        `json:"bundle,omitempty"`
	Rootfs      []mount.Mount `json:"rootfs,omitempty"`
	IO          task.IO       `json:"io,omitzero"`
	Exit        task.Exit     `json:"exit,omitzero"`
}

// A Topic is containerd's.
type Topic string

// What a runner tells.
const (
	Created     Topic = "/tasks/create"
	Started     Topic = "/tasks/start"
	OutOfMemory Topic = "/tasks/oom"
	Exited      Topic = "/tasks/exit"
	Deleted     Topic = "/tasks/delete"
	ExecAdded   Topic = "/tasks/exec-added"
	ExecStarted Topic = "/tasks/exec-started"
	Paused      Topic = "/tasks/paused"
	Resumed     Topic = "/tasks/resumed"
)

// A Publisher takes events in.
type Publisher interface {
	// Publish returns when somebody else has the event. One that will never
	// be taken is [errdefs.ErrInvalidArgument]; every other error is worth
	// another try.
	Publish(ctx context.Context, e Event) error
}

// Stats are what a task has used. The words in the maps are the kernel's.
type Stats struct {
	Unified bool // cgroup v2

	Pids, PidsMax uint64

	CPU, CPUUser, CPUSystem time.Duration
	CPUs                    []uint64          // nanoseconds of each; cgroup v1
	CPUStat                 map[string]uint64 // cpu.stat

	Memory     MemoryUse
	Swap       MemoryUse // of memory and swap together in cgroup v1
	Kernel     MemoryUse // cgroup v1
	KernelTCP  MemoryUse // cgroup v1
	MemoryStat map[string]uint64
	OOM        map[string]uint64 // memory.events, or memory.oom_control

	IO []IOStat
}

// A MemoryUse is one counter of memory and its limit.
type MemoryUse struct {
	Usage, Max, Limit, Fails uint64
}

// An IOStat is what was read from and written to a device.
type IOStat struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}
