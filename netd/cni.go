package netd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/network"
)

// A call is what a plugin is told.
type call struct {
	id    string // of the attachment
	netns string // path of the namespace, or empty if it is gone
	list  []byte // the network's configuration
	ports []network.Port
	dir   string // of the attachment
}

// plugins is CNI, and a seam for tests.
type plugins interface {
	// Add connects and returns the addresses of the container.
	Add(ctx context.Context, c call) ([]string, error)
	// Del undoes an Add however far it came, also when there was none.
	Del(ctx context.Context, c call) error
	// Collect has plugins that can remove what belongs to none of the
	// attachments.
	Collect(ctx context.Context, list []byte, valid []string) error
}

// device is what the interface of a container is called.
const device = "eth0"

// loopback brings a container's own interface up, where the runtime has not.
const loopback = `{"cniVersion":"1.0.0","name":"gantry-loopback","plugins":[{"type":"loopback"}]}`

// cni runs plugins.
type cni struct{ dirs []string }

func (p cni) Add(ctx context.Context, c call) ([]string, error) {
	lock, err := lockAttachment(ctx, c.dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	lo, err := libcni.NetworkConfFromBytes([]byte(loopback))
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(c.list)
	if err != nil {
		return nil, err
	}
	lib := libcni.NewCNIConfigWithCacheDir(p.dirs, c.dir, &running{lock: lock})
	if _, err := lib.AddNetworkList(ctx, lo, &libcni.RuntimeConf{ContainerID: c.id, NetNS: c.netns, IfName: "lo"}); err != nil {
		return nil, fmt.Errorf("loopback: %w", err)
	}
	result, err := lib.AddNetworkList(ctx, list, c.runtime())
	if err != nil {
		return nil, err
	}
	return addresses(result)
}

// addresses returns those of the container itself. A plugin tells of both ends.
func addresses(r types.Result) ([]string, error) {
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, ip := range result.IPs {
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(result.Interfaces) || result.Interfaces[*i].Sandbox == "") {
			continue
		}
		all = append(all, ip.Address.String())
	}
	return all, nil
}

// runtime is what libcni is told of an attachment.
func (c call) runtime() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: c.id, NetNS: c.netns, IfName: device}
	if len(c.ports) > 0 {
		var mappings []map[string]any
		for _, p := range c.ports {
			m := map[string]any{"hostPort": p.Host, "containerPort": p.Container, "protocol": p.Protocol}
			if p.HostIP.IsValid() {
				m["hostIP"] = p.HostIP.String()
			}
			mappings = append(mappings, m)
		}
		rt.CapabilityArgs = map[string]any{"portMappings": mappings}
	}
	return rt
}

func (p cni) Del(ctx context.Context, c call) error {
	lock, err := lockAttachment(ctx, c.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	list, err := libcni.NetworkConfFromBytes(c.list)
	if err != nil {
		return err
	}
	return libcni.NewCNIConfigWithCacheDir(p.dirs, c.dir, &running{lock: lock}).DelNetworkList(ctx, list, c.runtime())
}

func (p cni) Collect(ctx context.Context, b []byte, valid []string) error {
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		return err
	}
	if newer, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); err != nil || !newer {
		return err // it came with 1.1.0
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: device})
	}
	return libcni.NewCNIConfigWithCacheDir(p.dirs, "/nonexistent", &running{}).GCNetworkList(ctx, list, args)
}

// lockPause is between two looks at a lock.
const lockPause = 10 * time.Millisecond

// errLocked is a lock that somebody else has.
var errLocked = errors.New("somebody else has it")

// lockAttachment returns when nobody else works on an attachment. The lock goes
// to every plugin and on to its children, so that it outlives a netd that is
// killed: the next one does not undo what is still being done.
func lockAttachment(ctx context.Context, dir string) (*os.File, error) {
	f, err := lockDir(ctx, dir)
	if errors.Is(err, errLocked) {
		err = fmt.Errorf("a plugin that an earlier netd has started does not end: %w", ctx.Err())
	}
	return f, err
}

// lockDir returns when it has the lock of a directory, or errLocked when ctx has
// ended.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, errLocked
		case <-time.After(lockPause):
		}
	}
}

// outputMax is how much a plugin may say.
const outputMax = 1 << 20

// killTime is how long a plugin that was killed may take to end.
const killTime = 2 * time.Second

// pluginPath is where plugins find iptables and the like.
const pluginPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// running runs plugins as libcni asks for.
type running struct {
	version.PluginDecoder

	lock *os.File // nil is none
}

var _ invoke.Exec = (*running)(nil)

// ExecPlugin implements invoke.Exec. A plugin gets what CNI says and a PATH, no
// more of our environment, and ends with all its children when ctx does.
func (r *running) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	c := exec.CommandContext(ctx, path)
	c.Env = []string{pluginPath}
	for _, e := range environ {
		if strings.HasPrefix(e, "CNI_") {
			c.Env = append(c.Env, e)
		}
	}
	c.Dir = "/"
	c.Stdin = bytes.NewReader(stdin)
	out, errs := &limited{max: outputMax}, &limited{max: outputMax}
	c.Stdout, c.Stderr = out, errs
	if r.lock != nil {
		c.ExtraFiles = []*os.File{r.lock}
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	c.WaitDelay = killTime
	err := c.Run()
	switch {
	case err == nil:
		return out.b, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not end in time: %w", path, ctx.Err())
	}
	return nil, pluginError(err, out.b, errs.b)
}

// pluginError is what a plugin says went wrong.
func pluginError(err error, out, errs []byte) error {
	var said types.Error
	if json.Unmarshal(out, &said) == nil && said.Msg != "" {
		return &said
	}
	text := strings.TrimSpace(string(errs))
	return fmt.Errorf("%v: %.1000s: %w", err, text, errdefs.ErrUnknown)
}

// FindInPath implements invoke.Exec.
func (r *running) FindInPath(plugin string, dirs []string) (string, error) {
	return invoke.FindInPath(plugin, dirs)
}

// A limited keeps the beginning of what is written to it.
type limited struct {
	b   []byte
	max int
}

func (l *limited) Write(b []byte) (int, error) {
	l.b = append(l.b, b[:min(len(b), l.max-len(l.b))]...)
	return len(b), nil
}
