// Demo is every program of the demo image in one static executable, by the name
// it is called by: enough of a system to try the suite with, and nothing that
// has to be fetched.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

// A program runs with its arguments and returns its exit status.
type program func(io streams, args []string) int

type streams struct {
	in       io.Reader
	out, err io.Writer
}

// programs are the image's commands. The shell is added by main: it knows them
// all.
var programs = map[string]program{
	"cat":     cat,
	"counter": counter,
	"echo":    echo,
	"env":     env,
	"exit":    exit,
	"false":   func(streams, []string) int { return 1 },
	"get":     get,
	"hello":   hello,
	"id":      id,
	"ls":      ls,
	"pwd":     pwd,
	"sleep":   sleep,
	"true":    func(streams, []string) int { return 0 },
	"web":     web,
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "demo" && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	os.Exit(run(name, streams{os.Stdin, os.Stdout, os.Stderr}, args))
}

func run(name string, s streams, args []string) int {
	switch name {
	case "sh":
		return shell(s, args)
	case "commands": // for who makes the image
		fmt.Fprintln(s.out, strings.Join(commands(), " "))
		return 0
	}
	p, ok := programs[name]
	if !ok {
		fmt.Fprintf(s.err, "%s: no such command; there are %s\n", name, strings.Join(commands(), ", "))
		return 127
	}
	return p(s, args)
}

// commands are the names under which this program is called.
func commands() []string {
	return append(slices.Sorted(maps.Keys(programs)), "sh")
}

func hello(s streams, _ []string) int {
	host, _ := os.Hostname()
	fmt.Fprintf(s.out, "Hello from process %d of container %s.\n", os.Getpid(), host)
	return 0
}

func echo(s streams, args []string) int {
	fmt.Fprintln(s.out, strings.Join(args, " "))
	return 0
}

func env(s streams, _ []string) int {
	for _, e := range os.Environ() {
		fmt.Fprintln(s.out, e)
	}
	return 0
}

func exit(s streams, args []string) int {
	if len(args) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(args[0], 10, 8)
	if err != nil {
		return fail(s, "exit", err)
	}
	return int(n)
}

func id(s streams, _ []string) int {
	groups, _ := os.Getgroups()
	fmt.Fprintf(s.out, "uid=%d gid=%d groups=%v\n", os.Getuid(), os.Getgid(), groups)
	return 0
}

func pwd(s streams, _ []string) int {
	dir, err := os.Getwd()
	if err != nil {
		return fail(s, "pwd", err)
	}
	fmt.Fprintln(s.out, dir)
	return 0
}

func ls(s streams, args []string) int {
	if len(args) == 0 {
		args = []string{"."}
	}
	for _, dir := range args {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fail(s, "ls", err)
		}
		for _, e := range entries {
			name := e.Name()
			if e.IsDir() {
				name += "/"
			}
			fmt.Fprintln(s.out, name)
		}
	}
	return 0
}

func cat(s streams, args []string) int {
	if len(args) == 0 {
		if _, err := io.Copy(s.out, s.in); err != nil {
			return fail(s, "cat", err)
		}
	}
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return fail(s, "cat", err)
		}
		_, err = io.Copy(s.out, f)
		f.Close()
		if err != nil {
			return fail(s, "cat", err)
		}
	}
	return 0
}

// sleep sleeps for seconds, or for ever. As the first process of a container it
// has to ask for signals, or they do nothing.
func sleep(s streams, args []string) int {
	ctx, stop := signalled()
	defer stop()
	var over <-chan time.Time
	if len(args) > 0 && args[0] != "infinity" {
		seconds, err := strconv.ParseFloat(args[0], 64)
		if err != nil || seconds < 0 {
			return fail(s, "sleep", fmt.Errorf("%q is no number of seconds", args[0]))
		}
		over = time.After(time.Duration(seconds * float64(time.Second)))
	}
	select {
	case <-over:
		return 0
	case <-ctx.Done():
		return 128 + int(syscall.SIGTERM)
	}
}

// counter counts, a line a second or every so many seconds, until it is told to
// stop or has counted enough: counter [seconds [lines]].
func counter(s streams, args []string) int {
	seconds, lines := 1.0, -1
	var err error
	if len(args) > 0 {
		if seconds, err = strconv.ParseFloat(args[0], 64); err != nil || seconds <= 0 {
			return fail(s, "counter", fmt.Errorf("%q is no number of seconds", args[0]))
		}
	}
	if len(args) > 1 {
		if lines, err = strconv.Atoi(args[1]); err != nil {
			return fail(s, "counter", err)
		}
	}
	ctx, stop := signalled()
	defer stop()
	tick := time.NewTicker(time.Duration(seconds * float64(time.Second)))
	defer tick.Stop()
	for n := 1; n != lines+1; n++ {
		fmt.Fprintln(s.out, n)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0
		}
	}
	return 0
}

func signalled() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
}

func fail(s streams, name string, err error) int {
	fmt.Fprintf(s.err, "%s: %v\n", name, err)
	return 1
}

// shell reads commands, one a line or several with semicolons, and runs them in
// this process: sh [-c commands].
func shell(s streams, args []string) int {
	if len(args) == 2 && args[0] == "-c" {
		status, _ := execute(s, args[1], 0)
		return status
	}
	if len(args) > 0 {
		return fail(s, "sh", errors.New("only -c is known"))
	}
	status, left, prompt := 0, false, term.IsTerminal(int(os.Stdin.Fd()))
	in := bufio.NewReader(s.in)
	s.in = in
	for !left {
		if prompt {
			fmt.Fprint(s.out, "demo$ ")
		}
		line, err := in.ReadString('\n')
		status, left = execute(s, line, status)
		if err != nil {
			return status
		}
	}
	return status
}

// execute runs what a line says and returns the status of the last command,
// and whether the shell is left.
func execute(s streams, line string, status int) (last int, left bool) {
	for command := range strings.SplitSeq(line, ";") {
		words := strings.Fields(command)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		for i, w := range words {
			words[i] = strings.Trim(w, `"'`)
		}
		name := filepath.Base(words[0])
		switch {
		case name == "exit" && len(words) == 1:
			return status, true
		case name == "exit":
			return exit(s, words[1:]), true
		case name == "cd" && len(words) == 2:
			status = 0
			if err := os.Chdir(words[1]); err != nil {
				status = fail(s, "cd", err)
			}
		default:
			status = run(name, s, words[1:])
		}
	}
	return status, false
}
