package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/task"
)

const drainTime = 10 * time.Second // how long a deleted process's reader may take to read the rest

// stdio are the streams of one process: the ends it is given and the pumps
// behind them. Streams that nobody asked for are /dev/null and have no pump.
type stdio struct {
	child [3]*os.File // the process's ends; ours are closed once it has them
	null  *os.File    // among them, perhaps
	pumps []*pump
	wg    sync.WaitGroup // of the pumps

	socket *consoleSocket // of a terminal that has not come yet
	out    sink           // of that terminal
	bufs   *buffers

	mu      sync.Mutex // guards what follows
	stdin   *os.File   // the reading end of the client's FIFO
	hold    *os.File   // a writing end of it, so that it does not end before it is told to
	master  *os.File   // of the terminal
	size    *unix.Winsize
	closed  bool
	stdinTo *os.File // the writing end of the process's pipe
}

type stdioConfig struct {
	io       task.IO
	uid, gid uint32
	bundle   string // for the socket of a terminal
	name     string // of that socket, in the bundle
	bufs     *buffers
	log      *slog.Logger
}

// openStdio opens the far ends of the streams and makes the near ones.
func openStdio(cfg stdioConfig) (_ *stdio, err error) {
	s := &stdio{bufs: cfg.bufs}
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s.null, s.child = null, [3]*os.File{null, null, null}
	if cfg.io.Stdin != "" {
		if err := s.openStdin(cfg.io.Stdin); err != nil {
			return nil, err
		}
	}
	if cfg.io.Terminal {
		if cfg.io.Stdout != "" {
			if s.out, err = openSink(cfg.io.Stdout, cfg.log); err != nil {
				return nil, err
			}
		}
		s.socket, err = listenConsole(cfg.bundle, cfg.name)
		return s, err
	}
	if s.stdin != nil {
		r, w, err := pipe(cfg.uid, cfg.gid, true)
		if err != nil {
			return nil, err
		}
		s.child[0], s.stdinTo = r, w
	}
	for i, uri := range []string{1: cfg.io.Stdout, 2: cfg.io.Stderr} {
		if uri == "" {
			continue
		}
		dst, err := openSink(uri, cfg.log)
		if err != nil {
			return nil, err
		}
		w, r, err := pipe(cfg.uid, cfg.gid, false)
		if err != nil {
			dst.Close()
			return nil, err
		}
		s.child[i] = w
		s.pumps = append(s.pumps, newPump(r, dst, cfg.bufs))
	}
	return s, nil
}

func (s *stdio) openStdin(path string) error {
	r, err := openFIFO(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	s.stdin = r
	s.hold, err = openFIFO(path, unix.O_WRONLY)
	return err
}

// pipe makes a pipe of which the process gets one end, blocking as programs
// expect, and we keep the other.
func pipe(uid, gid uint32, processReads bool) (theirs, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	their, our := fds[1], fds[0]
	if processReads {
		their, our = our, their
	}
	if uid != 0 || gid != 0 {
		err = unix.Fchown(their, int(uid), int(gid))
	}
	if err == nil {
		err = unix.SetNonblock(our, true)
	}
	if err != nil {
		unix.Close(their)
		unix.Close(our)
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(their), "pipe"), os.NewFile(uintptr(our), "pipe"), nil
}

// begin starts the pumps of pipes. The process may fill a pipe before it is
// known to have started, so this comes before it.
func (s *stdio) begin() {
	for _, p := range s.pumps {
		s.wg.Go(p.run)
	}
	if s.stdinTo != nil {
		from, to := s.stdin, s.stdinTo
		s.wg.Go(func() {
			s.feed(from, to)
			to.Close()
		})
	}
}

// attach takes the terminal, which the OCI runtime has sent by now.
func (s *stdio) attach() error {
	if s.socket == nil {
		return nil
	}
	master, err := s.socket.receive()
	s.socket = nil
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.master = master
	if s.size != nil {
		s.resizeLocked(*s.size)
	}
	s.mu.Unlock()

	dst := s.out
	if dst == nil {
		dst = nowhere{}
	}
	s.out = nil
	p := newPump(master, dst, s.bufs)
	s.pumps = append(s.pumps, p)
	s.wg.Go(p.run)
	if s.stdin != nil {
		from := s.stdin
		s.wg.Go(func() { s.feed(from, master) })
	}
	return nil
}

// feed carries what the client writes to the process.
func (s *stdio) feed(from, to *os.File) {
	in := newPump(from, nil, s.bufs)
	in.carry(func(b []byte) (int, error) {
		n, err := to.Write(b)
		if errors.Is(err, unix.EIO) {
			return len(b), nil // a terminal that no program has open
		}
		return n, err
	})
	from.Close()
}

// started closes the ends that the process has now.
func (s *stdio) started() {
	for _, f := range append(s.child[:], s.null) {
		if f != nil {
			f.Close()
		}
	}
	s.null, s.child = nil, [3]*os.File{}
}

// closeStdin lets the process's standard input end when the last client has
// closed it.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil {
		s.hold.Close()
		s.hold = nil
	}
}

// resize sets the terminal's size, now or when it comes.
func (s *stdio) resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = &unix.Winsize{Col: uint16(min(width, 0xffff)), Row: uint16(min(height, 0xffff))}
	if s.master == nil || s.closed {
		return nil
	}
	return s.resizeLocked(*s.size)
}

func (s *stdio) resizeLocked(size unix.Winsize) error {
	c, err := s.master.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = c.Control(func(fd uintptr) { setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size) })
	if errors.Is(err, os.ErrClosed) {
		return nil // the process has ended
	}
	return errors.Join(err, setErr)
}

// processEnded closes the way in and begins the end of the way out.
func (s *stdio) processEnded() {
	s.closeStdin()
	s.mu.Lock()
	if s.stdin != nil {
		s.stdin.Close()
	}
	if s.stdinTo != nil {
		s.stdinTo.Close()
	}
	s.mu.Unlock()
	for _, p := range s.pumps {
		p.processEnded()
	}
}

// close waits until those who read have what the process wrote, for at most
// drainTime, and frees everything. It may be called again.
func (s *stdio) close() {
	s.processEnded()
	late := time.NewTimer(drainTime)
	defer late.Stop()
	for _, p := range s.pumps {
		p.hurry()
		select {
		case <-p.delivered:
		case <-late.C:
			late.Reset(0)
		}
	}
	s.abort()
}

// abort frees everything at once.
func (s *stdio) abort() {
	s.started()
	s.closeStdin()
	s.mu.Lock()
	s.closed = true
	for _, f := range []*os.File{s.stdin, s.stdinTo, s.master} {
		if f != nil {
			f.Close()
		}
	}
	s.mu.Unlock()
	if s.socket != nil {
		s.socket.close()
		s.socket = nil
	}
	if s.out != nil {
		s.out.Close()
		s.out = nil
	}
	for _, p := range s.pumps {
		p.stop()
	}
	s.wg.Wait()
}

// nowhere is the sink of a terminal whose output nobody asked for.
type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) finish(<-chan struct{})      {}
func (nowhere) Close() error                { return nil }
