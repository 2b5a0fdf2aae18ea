package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

func peersCommand(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "peers",
		Short: "Show which daemon may call which",
		Long: `Peers prints the table that every daemon checks its callers against. What is not
in it is denied. Root and the members of group gantry may call everything.

On the bus a daemon tells events of its own topics only. What a plugin may follow
and which gates it answers say the [[plugins]] of eventbus.toml; "gantryctl bus
status" shows who is there.

Fields with -o json: caller, daemon, methods, topics.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			type row struct {
				Caller  string   `json:"caller"`
				Daemon  string   `json:"daemon"`
				Methods []string `json:"methods"`
				Topics  []string `json:"topics,omitempty"` // of events that the caller tells
			}
			var rows []row
			for _, r := range rpc.Rules {
				rows = append(rows, row{r.Caller, strings.Replace(r.Daemon, rpc.AnyDaemon, "every daemon", 1), r.Methods, nil})
			}
			for _, d := range suite.Daemons {
				if len(d.Tells) > 0 {
					rows = append(rows, row{d.Name, suite.Eventbus, []string{}, d.Tells})
				}
			}
			if n.output == "json" {
				return show(c.OutOrStdout(), n.output, nil, rows, nil)
			}
			// One line a method: nobody reads ten in one cell.
			var lines [][]string
			for _, r := range rows {
				for i, m := range append(slices.Clone(r.Methods), r.Topics...) {
					line := []string{r.Caller, r.Daemon, strings.TrimPrefix(m, "/")}
					switch {
					case i >= len(r.Methods):
						line[2] = "events /" + m + "/*"
					case strings.HasSuffix(m, "/"):
						line[2] += "*"
					}
					if i > 0 {
						line[0], line[1] = "", ""
					}
					lines = append(lines, line)
				}
			}
			return show(c.OutOrStdout(), n.output, []string{"CALLER", "MAY CALL", "METHODS"}, lines,
				func(l []string) []string { return l })
		},
	}
}
