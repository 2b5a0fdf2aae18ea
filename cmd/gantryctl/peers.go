package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/rpc"
)

func peersCommand(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "peers",
		Short: "Show which daemon may call which",
		Long: `Peers prints the table that every daemon checks its callers against. What is not
in it is denied. Root and the members of group gantry may call everything.

Fields with -o json: caller, daemon, methods.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			type row struct {
				Caller  string   `json:"caller"`
				Daemon  string   `json:"daemon"`
				Methods []string `json:"methods"`
			}
			var rows []row
			for _, r := range rpc.Rules {
				rows = append(rows, row{r.Caller, strings.Replace(r.Daemon, rpc.AnyDaemon, "every daemon", 1), r.Methods})
			}
			if n.output == "json" {
				return show(c.OutOrStdout(), n.output, nil, rows, nil)
			}
			// One line a method: nobody reads ten in one cell.
			var lines [][]string
			for _, r := range rows {
				for i, m := range r.Methods {
					line := []string{r.Caller, r.Daemon, strings.TrimPrefix(m, "/")}
					if strings.HasSuffix(m, "/") {
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
