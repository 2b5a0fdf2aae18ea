package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
)

// A containerRow is a row of ps.
type containerRow struct {
	ID         string            `json:"id"`
	Image      string            `json:"image"`
	Status     string            `json:"status"` // of its task, or "no task"
	Pid        uint32            `json:"pid,omitempty"`
	ExitStatus *uint32           `json:"exit_status,omitempty"` // of a stopped one
	ExitedAt   *time.Time        `json:"exited_at,omitempty"`
	Runtime    string            `json:"runtime"`
	CreatedAt  time.Time         `json:"created_at"`
	Network    string            `json:"network,omitempty"`
	Addresses  []string          `json:"addresses,omitempty"` // in that network
	Ports      []string          `json:"ports,omitempty"`     // that are published
	Labels     map[string]string `json:"labels,omitempty"`
}

func psCommand(n *node) *cobra.Command {
	var filters []string
	c := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Long: `Ps lists the containers of the namespace, those too that do not run.

Fields with -o json: id, image, status (created, running, paused, pausing,
stopped, unknown, or "no task"), pid, exit_status, exited_at, runtime,
created_at, network, addresses, ports, labels.`,
		Example: `  gantryctl ps
  gantryctl ps --filter 'image==demo:latest' -o json`,
		Args: cobra.NoArgs,
		RunE: n.reaching(func(c *cobra.Command, _ []string) error {
			scope := namespace.Scope{Name: n.namespace}
			containers, err := n.client.Containers.In(scope).List(c.Context(), filters...)
			if err != nil {
				return err
			}
			tasks, err := n.client.Tasks.In(scope).List(c.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			return show(c.OutOrStdout(), n.output, []string{"ID", "IMAGE", "STATUS", "PID", "CREATED", "ADDRESS"}, containerRows(containers, tasks),
				func(r containerRow) []string { return r.cells(now) })
		}),
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, "only those that `MATCH`, as in id==c1 or labels.app==web; several are alternatives")
	return c
}

func containerRows(containers []container.Container, tasks []task.Process) []containerRow {
	byID := make(map[string]task.Process, len(tasks))
	for _, t := range tasks {
		byID[t.ContainerID] = t
	}
	var rows []containerRow
	for _, k := range containers {
		r := containerRow{
			ID: k.ID, Image: k.Image, Status: "no task", Runtime: k.Runtime.Name,
			CreatedAt: k.CreatedAt, Labels: k.Labels, Network: k.Labels[network.LabelNetwork],
			Addresses: split(k.Labels[network.LabelAddresses]), Ports: split(k.Labels[network.LabelPorts]),
		}
		if t, ok := byID[k.ID]; ok {
			r.Status, r.Pid = string(t.Status), t.Pid
			if t.Status == task.Stopped {
				r.ExitStatus, r.ExitedAt = &t.Exit.Status, &t.Exit.At
			}
		}
		rows = append(rows, r)
	}
	return rows
}

func (r containerRow) cells(now time.Time) []string {
	status, pid := r.Status, "-"
	if r.ExitStatus != nil {
		status += " (" + strconv.Itoa(int(*r.ExitStatus)) + ")"
	} else if r.Pid > 0 {
		pid = strconv.Itoa(int(r.Pid))
	}
	return []string{r.ID, r.Image, status, pid, since(r.CreatedAt, now), r.address()}
}

// address is the first, without what is the network's of it.
func (r containerRow) address() string {
	if len(r.Addresses) == 0 {
		return "-"
	}
	address, _, _ := strings.Cut(r.Addresses[0], "/")
	return address
}

// split returns the words of a list with commas.
func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
