package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/suite"
)

// node is what the commands may reach, and what the flags of all of them say.
// Tests fill it with stores in memory.
type node struct {
	client *client.Client // made by reaching

	dial     func(ctx context.Context, address string) (*client.Client, error)
	ask      asker
	operate  caller
	getenv   func(string) string
	unnotify func() // gives SIGINT and SIGTERM back, for commands that pass them on

	address, sockets, namespace, output string
	timeout                             time.Duration
	cancel                              context.CancelFunc // of the timeout
}

// in returns the namespace that the flags name.
func (n *node) in() *client.Namespace { return n.client.In(n.namespace) }

func (n *node) close() {
	if n.cancel != nil {
		n.cancel()
	}
	if n.client != nil {
		n.client.Close()
	}
}

// endless marks a command that goes on until it is told to stop: the timeout is
// not for it.
var endless = map[string]string{"endless": "yes"}

// starting marks a command that exits as the program that it starts.
var starting = map[string]string{"endless": "yes", "starting": "yes"}

func rootCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use:   "gantryctl",
		Short: "Run containers with gantry, and look after it",
		Long: `Gantryctl runs the suite (up), asks it (status, ps, events), runs containers with
it (image import, run, exec, stop, rm), and looks after blobs (content), snapshots
(snapshot), the bus and its plugins (bus, gate), and what daemons keep (fsck,
backup, restore).

Exit codes: 0 is success, 1 is failure, 2 is a command that makes no sense. Run
and exec exit with the code of their program, or with 125 if it could not be
started. Status exits with 1 if a daemon is down.

With -o json every list is one JSON array, and events are one object a line; the
names of their fields stay as they are.

The variables GANTRY_ADDRESS, GANTRY_SOCKETS and GANTRY_NAMESPACE stand for the
flags of these names.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	f := c.PersistentFlags()
	f.StringVar(&n.address, "address", n.env("GANTRY_ADDRESS", suite.Address), "`socket` of the suite's public door")
	f.StringVar(&n.sockets, "sockets", n.env("GANTRY_SOCKETS", suite.Sockets), "`directory` of the daemons' own sockets, for what they answer there alone")
	f.StringVarP(&n.namespace, "namespace", "n", n.env("GANTRY_NAMESPACE", "default"), "`namespace` to work in")
	f.StringVarP(&n.output, "output", "o", "table", "`form` of what is printed: table or json")
	f.DurationVar(&n.timeout, "timeout", time.Minute, "give up after this `time`; not for what goes on until it is stopped")
	c.PersistentPreRunE = func(c *cobra.Command, _ []string) error { return n.prepare(c) }
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	c.AddCommand(
		runCommand(n), execCommand(n), psCommand(n), stopCommand(n), rmCommand(n),
		imageCommand(n), contentCommand(n), snapshotCommand(n),
		eventsCommand(n), busCommand(n), gateCommand(n),
		fsckCommand(n), backupCommand(n), restoreCommand(n),
		upCommand(n), demoCommand(n), statusCommand(n), peersCommand(n), versionCommand(n),
	)
	checkArgs(c)
	return c
}

func (n *node) env(key, otherwise string) string {
	if v := n.getenv(key); v != "" {
		return v
	}
	return otherwise
}

// prepare checks the flags of every command and makes the client.
func (n *node) prepare(c *cobra.Command) error {
	if !slices.Contains([]string{"table", "json"}, n.output) {
		return usage(c, fmt.Errorf("--output %s: want table or json", n.output))
	}
	// Sockets are given to daemons and to the kernel, which know no other
	// working directory.
	for _, p := range []*string{&n.address, &n.sockets} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if n.timeout > 0 && c.Annotations["endless"] == "" {
		var ctx context.Context
		ctx, n.cancel = context.WithTimeout(c.Context(), n.timeout)
		c.SetContext(ctx)
	}
	return nil
}

// reaching is run of a command that needs the suite.
func (n *node) reaching(run func(c *cobra.Command, args []string) error) func(c *cobra.Command, args []string) error {
	return func(c *cobra.Command, args []string) error {
		err := n.reach(c.Context())
		switch {
		case err == nil:
			return run(c, args)
		case c.Annotations["starting"] != "":
			return exitError{code: exitStart, err: err}
		}
		return err
	}
}

func (n *node) reach(ctx context.Context) (err error) {
	n.client, err = n.dial(ctx, n.address)
	return err
}

// knockTime is how long nobody may be at the door: a gateway that restarts is
// back sooner, and a suite that does not run is never.
const knockTime = 2 * time.Second

// dialDoor returns a client of the suite behind a socket on which somebody
// listens. A client by itself would wait for longer.
func dialDoor(ctx context.Context, address string) (*client.Client, error) {
	if err := knock(ctx, address); err != nil {
		return nil, err
	}
	return client.Dial(address)
}

// knock returns when somebody listens on a socket.
func knock(ctx context.Context, socket string) error {
	var d net.Dialer
	for over := time.Now().Add(knockTime); ; {
		c, err := d.DialContext(ctx, "unix", socket)
		switch {
		case err == nil:
			c.Close()
			return nil
		case errors.Is(err, os.ErrPermission):
			return fmt.Errorf("socket %s: %w", socket, errdefs.ErrPermissionDenied)
		case time.Now().After(over):
			return fmt.Errorf("nobody answers on %s: %w", socket, errdefs.ErrUnavailable)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// usage says how a command is called where it was called wrongly.
func usage(c *cobra.Command, err error) error {
	return exitError{code: exitUsage, err: fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
}

// checkArgs makes wrong arguments an error of usage.
func checkArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage(c, err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		checkArgs(sub)
	}
}

// explain is one line about err: what, why, and what to do next.
func (n *node) explain(err error) string {
	text := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return text + "; --timeout gives it longer"
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, errdefs.ErrUnavailable):
		return text + "; " + n.whyAway()
	case errors.Is(err, errdefs.ErrPermissionDenied):
		return text + "; root and the members of group gantry may"
	}
	return text
}

// whyAway looks at the public door for the reason why nobody answers.
func (n *node) whyAway() string {
	c, err := net.DialTimeout("unix", n.address, time.Second)
	switch {
	case err == nil:
		c.Close()
		return "gantryctl status says which daemon is down"
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		up := "gantryctl up"
		if n.address != suite.Address {
			up = "gantryctl --address " + n.address + " up"
		}
		return "is the suite running? start it with: " + up
	case errors.Is(err, os.ErrPermission):
		return "the socket is for root and group gantry"
	}
	return err.Error()
}
