package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/gantryd/gantry/client"
)

// A tty is this process's side of a program's streams.
type tty struct {
	client.Streams

	terminal *os.File    // of this process, if the program has one
	before   *term.State // of terminal
}

// streams connects the program's streams to this process's.
func (f *programFlags) streams(c *cobra.Command) (*tty, error) {
	t := &tty{Streams: client.Streams{Out: c.OutOrStdout(), Err: c.ErrOrStderr()}}
	if f.interactive || f.terminal {
		t.In = c.InOrStdin()
	}
	if f.terminal {
		in, ok := c.InOrStdin().(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return nil, errors.New("--tty: standard input is no terminal")
		}
		t.terminal, t.Terminal = in, true
	}
	return t, nil
}

// raw hands every key to the program, interrupts too.
func (t *tty) raw() (err error) {
	if t.terminal != nil {
		t.before, err = term.MakeRaw(int(t.terminal.Fd()))
	}
	return err
}

// restore makes the terminal what it was.
func (t *tty) restore() {
	if t.before != nil {
		term.Restore(int(t.terminal.Fd()), t.before)
		t.before = nil
	}
}

// attend waits for a program and passes signals and the terminal's size on to
// it. The program's end decides: a signal that it ignores does nothing, but
// the third interrupt kills it.
func (t *tty) attend(n *node, p *client.Process) (status uint32, err error) {
	// From here on signals are the program's.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	n.unnotify()
	if err := t.raw(); err != nil {
		return 0, err
	}
	defer t.restore()

	done := make(chan struct{})
	go func() {
		defer close(done)
		t.pass(ctx, signals, p)
	}()
	exit, err := p.Wait(ctx)
	cancel()
	<-done
	return exit.Status, err
}

// patienceInterrupts is how many interrupts a program may ignore.
const patienceInterrupts = 2

func (t *tty) pass(ctx context.Context, signals <-chan os.Signal, p *client.Process) {
	t.resize(ctx, p)
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if isResize(s) {
				t.resize(ctx, p)
				continue
			}
			number := signalNumber(s)
			if s == os.Interrupt {
				if interrupts++; interrupts > patienceInterrupts {
					number = signalKill
				}
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := p.Kill(ctx, number); err != nil && !errors.Is(err, errdefs.ErrNotFound) && ctx.Err() == nil {
				os.Stderr.WriteString("gantryctl: the signal did not reach the program: " + err.Error() + "\r\n")
			}
			cancel()
		}
	}
}

// resize tells the program the terminal's size. A program that has ended does
// not want to know.
func (t *tty) resize(ctx context.Context, p *client.Process) {
	if t.terminal == nil {
		return
	}
	if width, height, err := term.GetSize(int(t.terminal.Fd())); err == nil {
		_ = p.Resize(ctx, uint32(width), uint32(height))
	}
}
