// Containerd-shim-gantry-v1 is the process beside a container: it makes the
// container with an OCI runtime, keeps its streams and its exit, and is reached
// over ttrpc. Package shim says what it promises and how it is started.
//
// How many threads there are is said by whoever starts us; Go need not watch
// our cgroup for it.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/gantryd/gantry/services/task/shimserve"
	"github.com/gantryd/gantry/shim"
)

const (
	stdinMax   = 4 << 20
	deleteTime = time.Minute
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

func run(args []string) error {
	a, err := parseArgv(args)
	if err != nil {
		return err
	}
	// These are for us, if for anybody: an OCI runtime that finds them acts on
	// them.
	for _, name := range []string{"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	switch {
	case a.version:
		name, revision := program()
		fmt.Printf("%s:\n  Version:  %s\n  Revision: %s\n", filepath.Base(os.Args[0]), name, revision)
		return nil
	case a.info:
		return info()
	case a.action == actionStart:
		return start(a, args)
	case a.action == actionServe:
		return serve(a)
	}
	return remove(a)
}

// info prints what this shim and its OCI runtime can do.
func info() error {
	stdin, err := readStdin()
	if err != nil {
		return err
	}
	options, err := shimserve.InfoOptions(stdin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deleteTime)
	defer cancel()
	features, err := shim.Features(ctx, options)
	if err != nil {
		return err
	}
	name, revision := program()
	answer, err := shimserve.InfoAnswer("io.containerd.gantry.v1", name, revision, stdin, features)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(answer)
	return err
}

// remove is the delete action.
func remove(a argv) error {
	bundle, err := bundleOf(a)
	if err != nil {
		return err
	}
	removeDeadSocket(bundle)
	ctx, cancel := context.WithTimeout(context.Background(), deleteTime)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	exit, err := shim.Cleanup(ctx, a.config(bundle), log)
	if err != nil {
		return err
	}
	answer, err := shimserve.DeleteAnswer(exit)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(answer)
	return err
}

// removeDeadSocket removes the socket of a shim that was killed.
func removeDeadSocket(bundle string) {
	b, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return
	}
	if path, ok := pathOf(string(b)); ok && !answers(path) {
		os.Remove(path)
	}
}

func bundleOf(a argv) (string, error) {
	if a.bundle != "" {
		return filepath.Abs(a.bundle)
	}
	return os.Getwd()
}

func readStdin() ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, stdinMax+1))
	if err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	if len(b) > stdinMax {
		return nil, fmt.Errorf("stdin: more than %d bytes", stdinMax)
	}
	return b, nil
}

// version is set by the build:
//
//	-ldflags "-X main.version=0.1.0"
var version string

// program says which program this is: what the build was given, else what Go
// recorded.
func program() (name, revision string) {
	name = version
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return name, revision
	}
	for _, s := range b.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	if name == "" {
		name = b.Main.Version
	}
	return name, revision
}
