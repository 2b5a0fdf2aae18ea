// Gantryctl is the operator's tool: it runs the suite, asks it, and runs
// containers with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes besides 0. Run and exec exit as their program does, and with
// exitStart if it could not be started.
const (
	exitFailed = 1
	exitUsage  = 2
	exitStart  = 125
)

func main() {
	os.Exit(func() int { // because os.Exit skips what is deferred
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		n := &node{dial: dialDoor, ask: askDaemon, operate: dialOperator, getenv: os.Getenv, unnotify: stop}
		defer n.close()
		return execute(ctx, n, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	}())
}

// execute runs a command and returns the exit code. It says on errs what went
// wrong, in one line.
func execute(ctx context.Context, n *node, args []string, in io.Reader, out, errs io.Writer) int {
	root := rootCommand(n)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit exitError
	if !errors.As(err, &exit) {
		exit = exitError{code: exitFailed, err: err}
	}
	if exit.err != nil {
		fmt.Fprintln(errs, "gantryctl: "+n.explain(exit.err))
	}
	return exit.code
}

// An exitError ends gantryctl with a code of its own. Without err it says
// nothing.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }
