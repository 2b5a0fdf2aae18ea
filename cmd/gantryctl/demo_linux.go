package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/event"
)

// demoTime bounds the whole demonstration.
const demoTime = 2 * time.Minute

func demoCommand(n *node) *cobra.Command {
	var o upOptions
	var image string
	c := &cobra.Command{
		Use:   "demo",
		Short: "See the suite at work",
		Long: `Demo starts a suite of its own in a temporary directory, imports the demo image,
runs it, shows what it says and the events that it caused, stops the suite and
removes everything.`,
		Example:     `  gantryctl demo`,
		Args:        cobra.NoArgs,
		Annotations: endless,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.resolve(); err != nil {
				return err
			}
			if image == "" {
				image = filepath.Join(o.bin, "demo.tar")
			}
			if _, err := os.Stat(image); err != nil {
				return fmt.Errorf("demo: %w; make image makes it, and --image says where it is", err)
			}
			ctx, cancel := context.WithTimeout(c.Context(), demoTime)
			defer cancel()
			return demonstrate(ctx, n, o, image, c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.bin, "bin", "", "`directory` of the daemons; beside gantryctl, or in ../libexec/gantry, unless given")
	c.Flags().StringVar(&image, "image", "", "archive `file` of the image; demo.tar beside the daemons unless given")
	return c
}

// demonstrate runs a suite in a scratch place and shows it.
func demonstrate(ctx context.Context, n *node, o upOptions, image string, out io.Writer) (err error) {
	scratch, err := os.MkdirTemp("", "gantry-demo-")
	if err != nil {
		return err
	}
	o.root, o.state = filepath.Join(scratch, "root"), filepath.Join(scratch, "run")
	o.address = filepath.Join(scratch, "gantry.sock")
	logs := &strings.Builder{}
	d := &demo{n: n, o: o, out: out}

	suiteCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- o.up(suiteCtx, onWrite(func() { close(ready) }), logs, n.ask) }()
	select {
	case <-ready:
		err = d.show(ctx, image)
	case err = <-ended:
		ended <- nil
	case <-ctx.Done():
		err = ctx.Err()
	}
	stop()
	err = errors.Join(err, <-ended)
	switch {
	case err == nil:
		d.say("The suite has stopped. %s is removed.", scratch)
	case logs.Len() > 0:
		d.say("The daemons said:\n%s", logs)
	}
	return errors.Join(err, os.RemoveAll(scratch))
}

// onWrite calls f at the first write.
func onWrite(f func()) io.Writer { return &firstWrite{f: f} }

type firstWrite struct {
	once sync.Once
	f    func()
}

func (w *firstWrite) Write(b []byte) (int, error) {
	w.once.Do(w.f)
	return len(b), nil
}

// A demo shows commands and what they print.
type demo struct {
	n   *node
	o   upOptions
	out io.Writer
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, "\n"+format+"\n", args...) }

func (d *demo) show(ctx context.Context, image string) error {
	d.say("A suite of six processes runs in %s.", d.o.state)
	if err := d.command(ctx, "status"); err != nil {
		return err
	}
	if err := d.command(ctx, "image", "import", image); err != nil {
		return err
	}
	c, err := client.Dial(d.o.address)
	if err != nil {
		return err
	}
	defer c.Close()
	eventsCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := c.Events.Subscribe(eventsCtx, event.SubscribeOptions{})
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	told := &eventPrinter{out: d.out, errs: d.out}
	const name = "hello"
	defer d.remove(ctx, c, name)
	if err := d.command(ctx, "run", "--rm", "--name", name, "demo:latest"); err != nil {
		return err
	}
	d.say("The run caused these events:")
	last := 2
	patience := time.AfterFunc(10*time.Second, cancel)
	defer patience.Stop()
	for e, err := range events {
		if err != nil {
			return fmt.Errorf("events: %w", err)
		}
		if err := told.event(e); err != nil {
			return err
		}
		// The two last ones come from two daemons, in either order.
		switch e.Topic {
		case "/containers/delete", "/snapshot/remove":
			if last--; last == 0 {
				return nil
			}
		}
	}
	return errors.New("events: the container's end was not told")
}

// remove removes what an interrupted run left.
func (d *demo) remove(ctx context.Context, c *client.Client, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if k, err := c.In("default").Container(ctx, name); err == nil {
		if err := k.Delete(ctx, true); err != nil {
			d.say("The container %s is left: %v", name, err)
		}
	}
}

// command runs a command as a user would type it.
func (d *demo) command(ctx context.Context, args ...string) error {
	n := &node{dial: d.n.dial, ask: d.n.ask, getenv: d.n.getenv, unnotify: func() {}}
	defer n.close()
	d.say("# gantryctl %s", strings.Join(args, " "))
	args = append([]string{"--address", d.o.address, "--sockets", d.o.state}, args...)
	if code := execute(ctx, n, args, strings.NewReader(""), d.out, d.out); code != 0 {
		return fmt.Errorf("%s: exit code %d", args[4], code)
	}
	return nil
}
