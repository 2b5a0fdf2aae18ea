package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/suite"
)

// upOptions say where a suite lives.
type upOptions struct {
	root, state, address string // absolute
	bin                  string // directory of the daemons' executables
	config               string // directory of further settings, or empty
	net                  bool   // run netd and dnsd too
}

func upCommand(n *node) *cobra.Command {
	var o upOptions
	c := &cobra.Command{
		Use:   "up",
		Short: "Run the suite here, without systemd",
		Long: `Up runs the six daemons until it is interrupted. It starts one again that dies,
prints their logs with their names before each line, and says "ready on SOCKET"
when all of them serve. Containers run on when it stops, and the next up finds
them.

With --net it runs netd too, which connects containers to CNI's networks: those in
ROOT/networks and /etc/gantry/networks. If there is none it makes one that is
called default, a bridge on which containers have addresses of 10.87.0.0/16, reach
each other and the world, and publish ports. And it runs dnsd, by which they find
each other by name.

What the daemons keep is below --root; their sockets and what does not outlive a
boot are below --state. With --config DIR the settings of DIR/<daemon>.toml are
added to those that up makes itself.`,
		Example: `  gantryctl up
  gantryctl up --net
  gantryctl --address /tmp/g/gantry.sock up --root /tmp/g/root --state /tmp/g/state`,
		Args:        cobra.NoArgs,
		Annotations: endless,
		RunE: func(c *cobra.Command, _ []string) error {
			o.address = n.address
			if err := o.resolve(); err != nil {
				return err
			}
			return o.up(c.Context(), c.OutOrStdout(), c.ErrOrStderr(), n.ask)
		},
	}
	c.Flags().StringVar(&o.root, "root", "/var/lib/gantry", "keep everything in this `directory`")
	c.Flags().StringVar(&o.state, "state", suite.Sockets, "sockets and runtime state go to this `directory`")
	c.Flags().StringVar(&o.bin, "bin", "", "`directory` of the daemons; beside gantryctl, or in ../libexec/gantry, unless given")
	c.Flags().BoolVar(&o.net, "net", false, "run netd and dnsd too, for run --net")
	c.Flags().StringVar(&o.config, "config", "", "`directory` of further settings, <daemon>.toml")
	return c
}

// resolve makes paths absolute and finds the executables.
func (o *upOptions) resolve() error {
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return err
		}
		o.bin = filepath.Dir(self)
		if _, err := os.Stat(filepath.Join(o.bin, suite.Contentd)); errors.Is(err, fs.ErrNotExist) {
			o.bin = filepath.Join(o.bin, "../libexec/gantry") // where make install puts them
		}
	}
	for _, p := range []*string{&o.root, &o.state, &o.bin, &o.config} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// socketMax is how long a socket's path may be: the kernel has 108 bytes, with
// the zero at the end.
const socketMax = 107

// check finds what would go wrong later, and less plainly.
func (o *upOptions) check() error {
	if os.Getuid() != 0 {
		return errors.New("up: needs root: it mounts and runs containers; try it with sudo")
	}
	longest := filepath.Join(o.state, suite.Snapshotd+".metrics.sock")
	for _, path := range []string{longest, suite.ShimSocket(o.address)} {
		if len(path) > socketMax {
			return fmt.Errorf("up: %s is %d bytes long, and a socket's path has at most %d; choose a shorter --state or --address", path, len(path), socketMax)
		}
	}
	for _, name := range o.names() {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			return fmt.Errorf("up: %w; make build makes it, and --bin says where it is", err)
		}
	}
	if o.net {
		if err := checkCNI(); err != nil {
			return err
		}
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return errors.New("up: runc is not installed, and containers need it: apt-get install runc")
	}
	return nil
}

// up runs the suite until ctx ends.
func (o *upOptions) up(ctx context.Context, out, logs io.Writer, ask asker) error {
	if err := o.check(); err != nil {
		return err
	}
	unlock, err := o.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	s := &supervisor{bin: o.bin, config: o.configDir(), plugins: o.plugins(), logs: &lines{w: logs}, patience: stopTime}
	return s.run(ctx, func(ctx context.Context) error {
		if err := o.awaitServing(ctx, ask, s.logs); err != nil {
			return err
		}
		fmt.Fprintf(out, "ready on %s; try: gantryctl%s status\n", o.address, o.flags())
		_, err := sd.SdNotify(false, sd.SdNotifyReady)
		return err
	})
}

// flags are what a command has to be told to find this suite.
func (o *upOptions) flags() string {
	var flags string
	if o.address != suite.Address {
		flags += " --address " + o.address
	}
	if o.state != suite.Sockets {
		flags += " --sockets " + o.state
	}
	return flags
}

func (o *upOptions) configDir() string { return filepath.Join(o.state, "config") }

// prepare makes the directories and the daemons' config files, and makes sure
// that nobody else uses them.
func (o *upOptions) prepare() (unlock func(), err error) {
	// Clients of group gantry reach the sockets by name and see nothing else.
	if err := os.MkdirAll(o.state, 0o711); err != nil {
		return nil, err
	}
	for _, dir := range []string{o.root, o.configDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(o.root, "up.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("up: another gantryctl up runs on %s; stop it, or choose another --root", o.root)
	}
	if err := o.unused(); err != nil {
		lock.Close()
		return nil, err
	}
	if o.net {
		err = o.writeNetwork()
	}
	for _, name := range o.names() {
		err = errors.Join(err, o.writeConfig(name))
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// leaving is how long the daemons of an up that was killed may take to end.
const leaving = 12 * time.Second

// unused is an error if somebody answers on one of the sockets.
func (o *upOptions) unused() error {
	over := time.Now().Add(leaving)
	sockets := []string{o.address}
	for _, name := range o.names() {
		sockets = append(sockets, suite.Socket(o.state, name))
	}
	doors := len(sockets)
	for len(sockets) > 0 {
		c, err := net.DialTimeout("unix", sockets[0], time.Second)
		if err != nil {
			sockets = sockets[1:]
			continue
		}
		c.Close()
		// A public door that is in use is not going to be free soon; a daemon
		// whose supervisor died is.
		if len(sockets) == doors || time.Now().After(over) {
			return fmt.Errorf("up: %s is in use: somebody answers there; stop it, or choose another --address and --state", sockets[0])
		}
		<-time.After(100 * time.Millisecond)
	}
	return nil
}

// shimSocketsMax is taskd's limit: a shim's socket has a long name in it.
const shimSocketsMax = 42

// settings are what a daemon is told of where it lives.
func (o *upOptions) settings(daemon string) map[string]any {
	s := map[string]any{
		"sockets": o.state,
		"root":    filepath.Join(o.root, daemon),
	}
	switch daemon {
	case suite.Gatewayd:
		s["address"] = o.address
	case suite.Snapshotd:
		s["state"] = filepath.Join(o.state, daemon)
	case suite.Eventbus:
		s["address"] = o.address
	case suite.Netd:
		s["address"] = o.address
		s["state"] = network.Dir(o.state)
		s["networks"] = o.networks()
	case suite.Dnsd:
		delete(s, "root") // it keeps nothing
		s["networks"] = network.Dir(o.state)
	case suite.Taskd:
		s["address"] = o.address
		s["state"] = filepath.Join(o.state, daemon)
		s["runtimes"] = map[string]string{"io.containerd.runc.v2": filepath.Join(o.bin, "containerd-shim-gantry-v1")}
		s["shim_sockets"] = filepath.Join(o.state, "s")
		if len(o.state)+2 > shimSocketsMax {
			s["shim_sockets"] = ""
		}
	}
	return s
}

func (o *upOptions) writeConfig(daemon string) error {
	all := make(map[string]any)
	if o.config != "" {
		file := filepath.Join(o.config, daemon+".toml")
		b, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := toml.Unmarshal(b, &all); err != nil {
			return fmt.Errorf("up: %s: %w", file, err)
		}
	}
	maps.Copy(all, o.settings(daemon))
	b, err := toml.Marshal(all)
	if err != nil {
		return err
	}
	head := "# Written by gantryctl up; the next one writes it anew.\n"
	return os.WriteFile(filepath.Join(o.configDir(), daemon+".toml"), append([]byte(head), b...), 0o600)
}

// awaitServing returns when every daemon serves.
func (o *upOptions) awaitServing(ctx context.Context, ask asker, logs *lines) error {
	began, said := time.Now(), false
	for _, name := range o.names() {
		for {
			askCtx, cancel := context.WithTimeout(ctx, askTime)
			a, err := ask(askCtx, suite.Socket(o.state, name))
			cancel()
			if err == nil && a.Serving {
				break
			}
			if !said && time.Since(began) > 10*time.Second {
				said = true
				logs.say("up", fmt.Sprintf("still waiting for %s", name))
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}
