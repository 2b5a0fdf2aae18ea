// Gantryd is every daemon of the suite in one executable. It runs the one whose
// name it is called by, or that its first argument names.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/suite"
)

// daemons are the recipes, by the daemon's name; each is in a file of its own.
var daemons = map[string]func(ctx context.Context, log *slog.Logger, args []string) error{
	suite.Contentd:  contentdMain,
	suite.Eventbus:  eventbusMain,
	suite.Gatewayd:  gatewaydMain,
	suite.Imaged:    imagedMain,
	suite.Snapshotd: snapshotdMain,
	suite.Taskd:     taskdMain,
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if _, ok := daemons[name]; !ok && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	run, ok := daemons[name]
	if !ok {
		names := slices.Sorted(maps.Keys(daemons))
		fmt.Fprintf(os.Stderr, "usage: gantryd <daemon> [-config file] [-check] [-version]\nThe daemons are %s.\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	daemon.Main(name, args, run)
}
