package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/suite"
)

func gateCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "gate", Short: "Gates, which are asked before a container starts", Args: cobra.NoArgs,
		Long: `A container whose label gantry.dev/gates names gates, or whose namespace's does,
starts when each lets it. A gate is a plugin that answers on the bus.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(gateLs(n))
	return c
}

// A gateRow is a line of gate ls.
type gateRow struct {
	Name    string     `json:"name"`
	Present bool       `json:"present"`
	Plugins []string   `json:"plugins"`
	Waiting []gateWait `json:"waiting"`
}

type gateWait struct {
	Namespace string    `json:"namespace"`
	Container string    `json:"container"`
	Since     time.Time `json:"since"`
}

func gateLs(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the gates that somebody answers, or may",
		Long: `Ls lists the gates that are answered now, those that the bus's config lets a
plugin answer, and those for which a container waits. A container that names a gate
that nobody answers does not start.

Fields with -o json: name, present (somebody answers now), plugins (who answers,
or may), waiting (namespace, container, since).`,
		Example: `  gantryctl gate ls`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := n.busStatus(c.Context())
			if err != nil {
				return err
			}
			waits, err := n.waits(c.Context())
			if err != nil {
				// Nobody waits in a taskd that is away.
				fmt.Fprintln(c.ErrOrStderr(), "gantryctl: who waits is not known: "+printable(err.Error()))
			}
			now := time.Now()
			return show(c.OutOrStdout(), n.output, []string{"GATE", "STATE", "ANSWERED BY", "WAITING"}, gateRows(st.Gates, waits),
				func(r gateRow) []string { return r.cells(now) })
		},
	}
}

// waits asks taskd who waits for a gate.
func (n *node) waits(ctx context.Context) ([]gate.Wait, error) {
	o, err := n.operate(ctx, suite.Socket(n.sockets, suite.Taskd))
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return o.lobby.Waiting(ctx)
}

// gateRows are the gates that the bus knows, and those that somebody waits for.
func gateRows(gates []event.Gate, waits []gate.Wait) []gateRow {
	var rows []gateRow
	for _, g := range gates {
		rows = append(rows, gateRow{Name: g.Name, Present: g.Present, Plugins: append([]string{}, g.Plugins...), Waiting: []gateWait{}})
	}
	for _, w := range waits {
		i := slices.IndexFunc(rows, func(r gateRow) bool { return r.Name == w.Gate })
		if i < 0 {
			i = len(rows)
			rows = append(rows, gateRow{Name: w.Gate, Plugins: []string{}})
		}
		rows[i].Waiting = append(rows[i].Waiting, gateWait{w.Namespace, w.Container, w.Since})
	}
	slices.SortFunc(rows, func(a, b gateRow) int { return strings.Compare(a.Name, b.Name) })
	return rows
}

// waitingShown is how many names there are in a cell.
const waitingShown = 3

func (r gateRow) cells(now time.Time) []string {
	state, by, waiting := "away", "-", "-"
	if r.Present {
		state = "present"
	}
	if len(r.Plugins) > 0 {
		by = strings.Join(r.Plugins, ", ")
	}
	var names []string
	for _, w := range r.Waiting[:min(waitingShown, len(r.Waiting))] {
		names = append(names, fmt.Sprintf("%s/%s (%s)", w.Namespace, w.Container, short(now.Sub(w.Since))))
	}
	if len(names) > 0 {
		waiting = strings.Join(names, ", ")
	}
	if more := len(r.Waiting) - len(names); more > 0 {
		waiting += fmt.Sprintf(" and %d more", more)
	}
	return []string{printable(r.Name), state, printable(by), printable(waiting)}
}
