package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/shim"
)

// The actions of a shim's executable.
const (
	actionStart  = "start"  // start a shim, print where it is, exit
	actionServe  = "serve"  // be a shim: print where it is, go on
	actionDelete = "delete" // remove what a dead shim has left
)

// An argv is a command line in containerd's form.
type argv struct {
	namespace, id string
	address       string // of the daemon's public socket; it is part of our socket's name
	bundle        string // for delete; empty is the working directory
	debug         bool
	version, info bool
	listener      int // descriptor of a socket that listens already; 0 is none
	action        string
}

// config is what the command line says to the engine. The OCI runtime's state is
// beside the public socket, so that two suites on a node do not meet in it; for
// containerd's own socket that is containerd's own place.
func (a argv) config(bundle string) shim.Config {
	root := "/run/containerd/runc"
	if path := strings.TrimPrefix(a.address, "unix://"); filepath.IsAbs(path) {
		root = filepath.Join(filepath.Dir(path), "runc")
	}
	return shim.Config{Namespace: a.namespace, ID: a.id, Bundle: bundle, RuntimeRoot: root}
}

// parseArgv reads a command line. The flags that containerd gives to every shim
// and that this one has no use for are accepted.
func parseArgv(args []string) (argv, error) {
	var a argv
	var unused string
	f := flag.NewFlagSet("shim", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&a.namespace, "namespace", "", "")
	f.StringVar(&a.id, "id", "", "")
	f.StringVar(&a.address, "address", "", "")
	f.StringVar(&a.bundle, "bundle", "", "")
	f.StringVar(&unused, "publish-binary", "", "")
	f.StringVar(&unused, "socket", "", "")
	f.StringVar(&unused, "debug-socket", "", "")
	f.BoolVar(&a.debug, "debug", false, "")
	f.BoolVar(&a.version, "v", false, "")
	f.BoolVar(&a.version, "version", false, "")
	f.BoolVar(&a.info, "info", false, "")
	f.IntVar(&a.listener, "listener", 0, "")
	if err := f.Parse(args); err != nil {
		return argv{}, err
	}
	if a.version || a.info {
		return a, nil
	}
	a.action = f.Arg(0)
	switch a.action {
	case actionStart, actionServe, actionDelete:
	case "":
		return argv{}, errors.New("this program is started by gantry's taskd or by containerd: want start, serve or delete")
	default:
		return argv{}, fmt.Errorf("action %q: want start, serve or delete", a.action)
	}
	if a.listener < 0 || a.listener > 0 && a.action != actionServe {
		return argv{}, fmt.Errorf("listener %d: want a descriptor, with serve", a.listener)
	}
	if err := ident.Check(a.namespace); err != nil {
		return argv{}, fmt.Errorf("namespace: %w", err)
	}
	if err := ident.Check(a.id); err != nil {
		return argv{}, fmt.Errorf("id: %w", err)
	}
	return a, nil
}
