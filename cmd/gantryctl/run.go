package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/network"
)

// programFlags are what run and exec say about a program.
type programFlags struct {
	terminal    bool
	interactive bool
	env         []string
	cwd         string
	user        string
}

func (f *programFlags) add(c *cobra.Command) {
	c.Flags().BoolVarP(&f.terminal, "tty", "t", false, "give it a terminal, this one")
	c.Flags().BoolVarP(&f.interactive, "interactive", "i", false, "give it this standard input")
	c.Flags().StringArrayVarP(&f.env, "env", "e", nil, "set `KEY=VALUE`, or KEY to what it is here")
	c.Flags().StringVarP(&f.cwd, "workdir", "w", "", "start in this `directory` of the container")
	c.Flags().StringVarP(&f.user, "user", "u", "", "run as this `user`, in numbers: uid or uid:gid")
	// What follows the image or the container is the program's.
	c.Flags().SetInterspersed(false)
}

func (f *programFlags) program(n *node, args []string) client.Program {
	p := client.Program{Args: args, Cwd: f.cwd, User: f.user, Terminal: f.terminal}
	for _, e := range f.env {
		if !strings.Contains(e, "=") {
			e += "=" + n.getenv(e)
		}
		p.Env = append(p.Env, e)
	}
	return p
}

type runFlags struct {
	programFlags
	detach   bool
	remove   bool
	name     string
	mounts   []string
	labels   []string
	readOnly bool
	hostNet  bool
	net      string
	ports    []string
	runtime  string
	log      string

	snapshotter string
}

func runCommand(n *node) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run IMAGE [COMMAND…]",
		Short: "Run a command in a new container",
		Long: `Run makes a container from an image and runs a command in it, the image's own
unless another is given. It waits for its end, passes signals on, and exits with
its code, or with 125 if it could not be started. The third interrupt kills.

The container has namespaces of its own and an empty network, a short list of
capabilities, and no seccomp profile yet. With --net it waits at a gate until netd,
which gantryctl up --net runs, has connected it; on a network that it shares it has
no raw sockets, and others of its namespace find it by its name and by those of its
label gantry.dev/names=A,B. What a detached container writes is lost unless --log
says where to keep it.`,
		Example: `  gantryctl run --rm demo
  gantryctl run --rm -t demo /bin/sh
  gantryctl run -d --name web --log /tmp/web.log demo /bin/counter
  gantryctl run -d --net default -p 8080:80 demo /bin/web
  gantryctl run --rm --mount /srv/data:/data:ro demo /bin/ls /data`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: n.completeImage,
		Annotations:       starting,
		RunE: n.reaching(func(c *cobra.Command, args []string) error {
			return f.run(c, n, args[0], args[1:])
		}),
	}
	f.add(c)
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "print the container's name and do not wait")
	c.Flags().StringVar(&f.log, "log", "", "add what it writes to this `file`, with --detach")
	c.Flags().BoolVar(&f.remove, "rm", false, "remove the container when it has ended")
	c.Flags().StringVar(&f.name, "name", "", "call the container `NAME`")
	c.Flags().StringArrayVar(&f.mounts, "mount", nil, "mount a directory or file of the node: `SOURCE:TARGET[:ro]`")
	c.Flags().StringArrayVarP(&f.labels, "label", "l", nil, "give the container a label `KEY=VALUE`")
	c.Flags().BoolVar(&f.readOnly, "read-only", false, "let nothing be written to the image's files")
	c.Flags().BoolVar(&f.hostNet, "host-net", false, "use the node's network")
	c.Flags().StringVar(&f.net, "net", "", "connect it to this `network` before it starts")
	c.Flags().StringArrayVarP(&f.ports, "publish", "p", nil, "publish a `PORT` of it on the node, [ADDRESS:]HOST:CONTAINER[/udp]")
	c.Flags().StringVar(&f.runtime, "runtime", "", "run it with this `runtime` instead of the namespace's")
	c.Flags().StringVar(&f.snapshotter, "snapshotter", "", "keep its files in this `snapshotter` instead of the namespace's")
	return c
}

func (f *runFlags) options(n *node, image string, args []string) (client.CreateOptions, error) {
	o := client.CreateOptions{
		ID:       f.name,
		Image:    image,
		Program:  f.program(n, args),
		Labels:   map[string]string{},
		ReadOnly: f.readOnly,
		HostNet:  f.hostNet,
		Runtime:  f.runtime,

		Snapshotter: f.snapshotter,
	}
	if err := f.connect(n, &o); err != nil {
		return o, err
	}
	for _, l := range f.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok {
			return o, fmt.Errorf("--label %s: want KEY=VALUE", l)
		}
		o.Labels[key] = value
	}
	for _, m := range f.mounts {
		parts := strings.Split(m, ":")
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && !slices.Contains([]string{"ro", "rw"}, parts[2]) {
			return o, fmt.Errorf("--mount %s: want SOURCE:TARGET or SOURCE:TARGET:ro", m)
		}
		options := []string{"rbind", "rprivate", "rw"}
		if len(parts) == 3 {
			options[2] = parts[2]
		}
		o.Mounts = append(o.Mounts, specs.Mount{Type: "bind", Source: parts[0], Destination: parts[1], Options: options})
	}
	return o, nil
}

// connect says which network the container is on, and what it publishes.
func (f *runFlags) connect(n *node, o *client.CreateOptions) error {
	if f.net == "" {
		if len(f.ports) > 0 {
			return errors.New("--publish is for --net")
		}
		return nil
	}
	if f.hostNet {
		return errors.New("--net does not go with --host-net")
	}
	ports, err := network.ParsePorts(strings.Join(f.ports, ","))
	if err != nil {
		return fmt.Errorf("--publish: %w", err)
	}
	resolv := network.ResolvConf(network.Dir(n.sockets), f.net)
	if _, err := os.Stat(resolv); err != nil {
		return fmt.Errorf("--net %s: netd does not know it (%w); start it with gantryctl up --net", f.net, err)
	}
	o.Net = client.Net{Name: f.net, Ports: ports, ResolvConf: resolv}
	return nil
}

func (f *runFlags) run(c *cobra.Command, n *node, image string, args []string) error {
	ctx := c.Context()
	o, err := f.options(n, image, args)
	if err != nil {
		return usage(c, err)
	}
	if f.detach && (f.interactive || f.remove) {
		return usage(c, errors.New("--detach does not go with --interactive or --rm"))
	}
	if f.log != "" && !f.detach {
		return usage(c, errors.New("--log is for --detach"))
	}
	tty := &tty{Streams: client.Streams{Terminal: f.terminal}}
	if !f.detach {
		if tty, err = f.streams(c); err != nil {
			return usage(c, err)
		}
	} else if f.log != "" {
		if tty.File, err = filepath.Abs(f.log); err != nil {
			return err
		}
	}
	defer tty.restore()
	k, err := n.in().Create(ctx, o)
	if err != nil {
		return startError(ctx, image, err)
	}
	p, err := k.Start(ctx, tty.Streams)
	if err != nil {
		ctx := context.WithoutCancel(ctx)
		return startError(ctx, k.ID, errors.Join(err, k.Delete(ctx, false)))
	}
	if f.detach {
		p.Close()
		_, err := fmt.Fprintln(c.OutOrStdout(), k.ID)
		return err
	}
	status, err := tty.attend(n, p)
	if err != nil {
		return startError(ctx, k.ID, err)
	}
	// An interrupt is no reason to leave anything behind.
	ctx = context.WithoutCancel(ctx)
	if err := p.Delete(ctx); err != nil {
		return startError(ctx, k.ID, err)
	}
	if f.remove {
		if err := k.Remove(ctx); err != nil {
			return startError(ctx, k.ID, err)
		}
	}
	return exitWith(status)
}

// exitWith ends gantryctl as a program did.
func exitWith(status uint32) error {
	if status == 0 {
		return nil
	}
	return exitError{code: int(status)}
}

// startError is about a program that could not be started or waited for, which
// has no code of its own.
func startError(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, errdefs.ErrNotFound):
		err = fmt.Errorf("%s: %w; gantryctl image ls and ps show what there is", what, err)
	case errors.Is(err, errdefs.ErrAlreadyExists):
		err = fmt.Errorf("%s: %w; gantryctl rm removes it", what, err)
	default:
		err = fmt.Errorf("%s: %w", what, err)
	}
	return exitError{code: exitStart, err: err}
}
