package tasktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Program is what a process runs here in place of an executable. It returns
// the exit status, and returns when ctx ends: the process was killed.
type Program func(ctx context.Context, p Running) (status uint32)

// A Running is what a program sees.
type Running struct {
	Args    []string
	Stdin   io.Reader // ends with CloseIO
	Stdout  io.Writer
	Stderr  io.Writer
	Signals <-chan uint32 // all but SIGKILL
}

// Programs are the executables of a fake, by the last element of args[0]. One
// that is not among them cannot be started.
type Programs map[string]Program

// DefaultPrograms are
//
//	true, false      exit 0, exit 1
//	exit N           exit N
//	sleep            prints "ready", then until SIGTERM or SIGINT, then 128 + signal
//	ignore           until it is killed
//	echo words…      prints them
//	cat              copies standard input to standard output
func DefaultPrograms() Programs {
	return Programs{
		"true":   func(context.Context, Running) uint32 { return 0 },
		"false":  func(context.Context, Running) uint32 { return 1 },
		"exit":   exit,
		"sleep":  sleep,
		"ignore": ignore,
		"echo":   echo,
		"cat":    cat,
	}
}

func exit(_ context.Context, p Running) uint32 {
	if len(p.Args) < 2 {
		return 2
	}
	n, err := strconv.ParseUint(p.Args[1], 10, 8)
	if err != nil {
		return 2
	}
	return uint32(n)
}

func sleep(ctx context.Context, p Running) uint32 {
	fmt.Fprintln(p.Stdout, "ready")
	for {
		select {
		case <-ctx.Done():
			return 0
		case s := <-p.Signals:
			if s == uint32(syscall.SIGTERM) || s == uint32(syscall.SIGINT) {
				return 128 + s
			}
		}
	}
}

func ignore(ctx context.Context, _ Running) uint32 {
	<-ctx.Done()
	return 0
}

func echo(_ context.Context, p Running) uint32 {
	fmt.Fprintln(p.Stdout, strings.Join(p.Args[1:], " "))
	return 0
}

func cat(_ context.Context, p Running) uint32 {
	if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
		return 1
	}
	return 0
}

// streams are the open ends of a process's IO. FIFOs are opened for reading and
// writing, so that neither opening nor writing waits for the other side.
type streams struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	files  []*os.File
	input  *os.File
}

func openStreams(stdin, stdout, stderr string) (*streams, error) {
	s := &streams{stdin: strings.NewReader("")}
	if stdin != "" {
		f, err := s.open(stdin)
		if err != nil {
			return nil, err
		}
		s.input = f
		s.stdin = endsWithClose{f}
	}
	var err error
	if s.stdout, err = s.output(stdout); err == nil {
		s.stderr = s.stdout
		if stderr != stdout {
			s.stderr, err = s.output(stderr)
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *streams) output(path string) (io.Writer, error) {
	if path == "" {
		return io.Discard, nil
	}
	return s.open(strings.TrimPrefix(path, "file://"))
}

func (s *streams) open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s.files = append(s.files, f)
	return f, nil
}

func (s *streams) closeInput() {
	if s.input != nil {
		s.input.SetReadDeadline(time.Now())
	}
}

func (s *streams) close() {
	for _, f := range s.files {
		f.Close()
	}
}

// endsWithClose reads what is there until the file is closed, or until nothing
// is there after its deadline.
type endsWithClose struct{ f *os.File }

func (r endsWithClose) Read(b []byte) (int, error) {
	n, err := r.f.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// What was written before the end is read all the same.
		n, err = r.rest(b)
	}
	if errors.Is(err, os.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

func (r endsWithClose) rest(b []byte) (n int, err error) {
	c, err := r.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := c.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), b) }); e != nil {
		return 0, e
	}
	if n <= 0 {
		return 0, io.EOF
	}
	return n, err
}
