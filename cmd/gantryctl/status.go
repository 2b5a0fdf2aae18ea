package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/suite/suiterpc"
)

// askTime is how long a daemon has to say how it is.
const askTime = 2 * time.Second

// An answer is what a daemon says when it is asked.
type answer struct {
	suite.Description
	Serving bool
}

// An asker asks the daemon behind a socket how it is.
type asker func(ctx context.Context, socket string) (answer, error)

// askDaemon asks the daemon behind a socket.
func askDaemon(ctx context.Context, socket string) (answer, error) {
	// A connection that waits for its peer would wait for one that is down.
	var d net.Dialer
	probe, err := d.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, os.ErrPermission):
		return answer{}, fmt.Errorf("%s is for root and group gantry", socket)
	case err != nil:
		return answer{}, fmt.Errorf("nobody listens on %s", socket)
	}
	probe.Close()
	conn, err := rpc.Dial(socket)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	h, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return answer{}, err
	}
	self, err := suiterpc.NewClient(conn).Describe(ctx)
	return answer{Description: self, Serving: h.Status == healthpb.HealthCheckResponse_SERVING}, err
}

// A daemonStatus is a row of status.
type daemonStatus struct {
	Daemon  string     `json:"daemon"`
	State   string     `json:"state"`  // "up" or "down"
	Health  string     `json:"health"` // "serving", "not serving" or "unknown"
	Version string     `json:"version,omitempty"`
	Pid     int        `json:"pid,omitempty"`
	Started *time.Time `json:"started,omitempty"`
	Memory  int64      `json:"memory_bytes,omitempty"`
	Error   string     `json:"error,omitempty"`
}

func statusCommand(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how each daemon is",
		Long: `Status asks each daemon itself, not the gateway, so that it works while some are
down. It exits with 1 if any is.

Fields with -o json: daemon, state (up or down), health (serving, not serving or
unknown), version, pid, started, memory_bytes, error.`,
		Example: `  gantryctl status
  gantryctl --sockets /tmp/suite/state status -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			rows := askAll(c.Context(), n)
			now := time.Now()
			err := show(c.OutOrStdout(), n.output, []string{"DAEMON", "STATE", "HEALTH", "UP", "PID", "MEMORY", "VERSION"}, rows,
				func(r daemonStatus) []string { return r.cells(now) })
			if err != nil {
				return err
			}
			for _, r := range rows {
				if r.State != "up" || r.Health != "serving" {
					return exitError{code: exitFailed}
				}
			}
			return nil
		},
	}
}

// askAll asks every daemon at once.
func askAll(ctx context.Context, n *node) []daemonStatus {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var names []string
	for _, d := range suite.Daemons {
		names = append(names, d.Name)
	}
	// A plugin is asked where there is one.
	for _, p := range suite.Plugins {
		if _, err := os.Lstat(suite.Socket(n.sockets, p.Name)); err == nil {
			names = append(names, p.Name)
		}
	}
	rows := make([]daemonStatus, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { rows[i] = status(ctx, n, name) })
	}
	wg.Wait()
	return rows
}

func status(ctx context.Context, n *node, daemon string) daemonStatus {
	a, err := n.ask(ctx, suite.Socket(n.sockets, daemon))
	if err != nil {
		return daemonStatus{Daemon: daemon, State: "down", Health: "unknown", Error: err.Error()}
	}
	health := "not serving"
	if a.Serving {
		health = "serving"
	}
	return daemonStatus{
		Daemon: daemon, State: "up", Health: health,
		Version: a.Version, Pid: a.Pid, Started: &a.Started, Memory: a.Memory,
	}
}

func (r daemonStatus) cells(now time.Time) []string {
	if r.State != "up" {
		return []string{r.Daemon, r.State, "-", "-", "-", "-", r.Error}
	}
	return []string{r.Daemon, r.State, r.Health, short(now.Sub(*r.Started)), strconv.Itoa(r.Pid), bytesize(r.Memory), r.Version}
}
