package main

import (
	"context"

	"github.com/spf13/cobra"
)

// version is set by the build:
//
//	-ldflags "-X main.version=0.1.0"
var version string

func versionCommand(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of gantryctl and of the daemons",
		Long: `Version shows this program's version and what each daemon says of its own. A
daemon that is down has none.

Fields with -o json: name, version.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			type row struct {
				Name    string `json:"name"`
				Version string `json:"version"`
			}
			rows := []row{{"gantryctl", ownVersion()}}
			ctx, cancel := context.WithTimeout(c.Context(), askTime)
			defer cancel()
			for _, s := range askAll(ctx, n) {
				rows = append(rows, row{s.Daemon, s.Version})
			}
			return show(c.OutOrStdout(), n.output, []string{"NAME", "VERSION"}, rows, func(r row) []string {
				if r.Version == "" {
					r.Version = "down"
				}
				return []string{r.Name, r.Version}
			})
		},
	}
}

func ownVersion() string {
	if version == "" {
		return "0.0.0-devel"
	}
	return version
}
