package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/event"
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
	Name    string   `json:"name"`
	Present bool     `json:"present"`
	Plugins []string `json:"plugins"`
}

func gateLs(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the gates that somebody answers, or may",
		Long: `Ls lists the gates that are answered now, and those that the bus's config lets a
plugin answer. A container that names another gate does not start.

Fields with -o json: name, present (somebody answers now), plugins (who answers,
or may).`,
		Example: `  gantryctl gate ls`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := n.busStatus(c.Context())
			if err != nil {
				return err
			}
			var rows []gateRow
			for _, g := range st.Gates {
				rows = append(rows, newGateRow(g))
			}
			return show(c.OutOrStdout(), n.output, []string{"GATE", "STATE", "ANSWERED BY"}, rows, gateRow.cells)
		},
	}
}

func newGateRow(g event.Gate) gateRow { return gateRow{g.Name, g.Present, g.Plugins} }

func (r gateRow) cells() []string {
	state := "away"
	if r.Present {
		state = "present"
	}
	return []string{printable(r.Name), state, printable(strings.Join(r.Plugins, ", "))}
}
