package stream

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

// A Set is the streams of one process: the ends it is given and the pumps
// behind them. Streams that nobody asked for are /dev/null and have no pump.
type Set struct {
	Child [3]*os.File // the process's ends; ours are closed once it has them
	null  *os.File    // among them, perhaps
	pumps []*pump
	wg    sync.WaitGroup // of the pumps

	socket *consoleSocket // of a terminal that has not come yet
	out    sink           // of that terminal
	bufs   *Buffers

	mu      sync.Mutex // guards what follows
	stdin   *os.File   // the reading end of the client's FIFO
	hold    *os.File   // a writing end of it, so that it does not end before it is told to
	master  *os.File   // of the terminal
	size    *unix.Winsize
	closed  bool
	stdinTo *os.File // the writing end of the process's pipe
}

// A Config says what streams to make.
type Config struct {
	IO       task.IO
	UID, GID uint32 // owner of the process's pipes
	Bundle   string // for the socket of a terminal
	Socket   string // its name, in the bundle
	Buffers  *Buffers
	Log      *slog.Logger
}

// Open opens the far ends of the streams and makes the near ones.
func Open(cfg Config) (_ *Set, err error) {
	s := &Set{bufs: cfg.Buffers}
	defer func() {
		if err != nil {
			s.Abort()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s.null, s.Child = null, [3]*os.File{null, null, null}
	if cfg.IO.Stdin != "" {
		if err := s.openStdin(cfg.IO.Stdin); err != nil {
			return nil, err
		}
	}
	if cfg.IO.Terminal {
		if cfg.IO.Stdout != "" {
			if s.out, err = openSink(cfg.IO.Stdout, cfg.Log); err != nil {
				return nil, err
			}
		}
		s.socket, err = listenConsole(cfg.Bundle, cfg.Socket)
		return s, err
	}
	if s.stdin != nil {
		r, w, err := pipe(cfg.UID, cfg.GID, true)
		if err != nil {
			return nil, err
		}
		s.Child[0], s.stdinTo = r, w
	}
	for i, uri := range []string{1: cfg.IO.Stdout, 2: cfg.IO.Stderr} {
		if uri == "" {
			continue
		}
		dst, err := openSink(uri, cfg.Log)
		if err != nil {
			return nil, err
		}
		w, r, err := pipe(cfg.UID, cfg.GID, false)
		if err != nil {
			dst.Close()
			return nil, err
		}
		s.Child[i] = w
		s.pumps = append(s.pumps, newPump(r, dst, cfg.Buffers))
	}
	return s, nil
}

func (s *Set) openStdin(path string) error {
	r, err := OpenFIFO(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	s.stdin = r
	s.hold, err = OpenFIFO(path, unix.O_WRONLY)
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

// Begin starts the pumps of pipes. The process may fill a pipe before it is
// known to have started, so this comes before it.
func (s *Set) Begin() {
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

// Attach takes the terminal, which the OCI runtime has sent by now.
func (s *Set) Attach() error {
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

// Socket is the name of the socket that the OCI runtime has to send a terminal
// to, relative to the bundle, or empty.
func (s *Set) Socket() string {
	if s.socket == nil {
		return ""
	}
	return s.socket.name
}

// feed carries what the client writes to the process.
func (s *Set) feed(from, to *os.File) {
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

// Given closes the ends that the process has now.
func (s *Set) Given() {
	for _, f := range append(s.Child[:], s.null) {
		if f != nil {
			f.Close()
		}
	}
	s.null, s.Child = nil, [3]*os.File{}
}

// CloseStdin lets the process's standard input end when the last client has
// closed it.
func (s *Set) CloseStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil {
		s.hold.Close()
		s.hold = nil
	}
}

// Resize sets the terminal's size, now or when it comes.
func (s *Set) Resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = &unix.Winsize{Col: uint16(min(width, 0xffff)), Row: uint16(min(height, 0xffff))}
	if s.master == nil || s.closed {
		return nil
	}
	return s.resizeLocked(*s.size)
}

func (s *Set) resizeLocked(size unix.Winsize) error {
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

// ProcessEnded closes the way in and begins the end of the way out.
func (s *Set) ProcessEnded() {
	s.CloseStdin()
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

// Close waits until those who read have what the process wrote, for at most
// drainTime, and frees everything. It may be called again.
func (s *Set) Close() {
	s.ProcessEnded()
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
	s.Abort()
}

// Abort frees everything at once.
func (s *Set) Abort() {
	s.Given()
	s.CloseStdin()
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
