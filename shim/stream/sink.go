package stream

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	readerPatience = 30 * time.Second       // how long a full FIFO that nobody reads holds its process
	readerLook     = 100 * time.Millisecond // how often it is looked for a reader meanwhile
)

// A sink is where a stream goes. Write never fails for good: what cannot be
// delivered is dropped and counted, since a copier that gave up would hang the
// process that writes.
type sink interface {
	io.WriteCloser

	// finish returns when what was written has a reader, or will never have
	// one, or hurry is closed. Then Close loses nothing that can be helped.
	finish(hurry <-chan struct{})
}

// openSink opens the far end of an output stream: a FIFO, which exists, or a
// file, which is made.
func openSink(uri string, log *slog.Logger) (sink, error) {
	scheme, path, ok := strings.Cut(uri, "://")
	if !ok {
		scheme, path = "fifo", uri
	} else if u, err := url.Parse(uri); err == nil {
		path = u.Path
	}
	if !filepath.IsAbs(path) && (scheme == "fifo" || scheme == "file") {
		return nil, fmt.Errorf("stream %q: want an absolute path: %w", uri, errdefs.ErrInvalidArgument)
	}
	switch scheme {
	case "fifo":
		f, err := OpenFIFO(path, unix.O_WRONLY)
		if err != nil {
			return nil, err
		}
		return &fifoSink{f: f, patience: readerPatience, closed: make(chan struct{}), lost: losses{log: log.With("stream", path)}}, nil
	case "file":
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("stream %q: %w", uri, err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return nil, fmt.Errorf("stream %q: %w", uri, err)
		}
		return &fileSink{f: f, lost: losses{log: log.With("stream", path)}}, nil
	case "binary":
		return nil, fmt.Errorf("stream %q: a logging program is not supported yet; use a FIFO or file://: %w", uri, errdefs.ErrNotImplemented)
	}
	return nil, fmt.Errorf("stream %q: unknown scheme: %w", uri, errdefs.ErrInvalidArgument)
}

// OpenFIFO opens one end of a FIFO, unix.O_RDONLY or unix.O_WRONLY, without
// waiting for the other.
func OpenFIFO(path string, end int) (*os.File, error) {
	const flags = unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOFOLLOW
	// The reading end opens at once; the writing end only if there is a
	// reader, so that we are one for a moment.
	r, err := unix.Open(path, unix.O_RDONLY|flags, 0)
	if err != nil {
		return nil, fmt.Errorf("FIFO %s: %v: %w", path, err, errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Fstat(r, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(r)
		return nil, fmt.Errorf("%s is not a FIFO: %w", path, errdefs.ErrInvalidArgument)
	}
	if end == unix.O_RDONLY {
		return os.NewFile(uintptr(r), path), nil
	}
	defer unix.Close(r)
	w, err := unix.Open(fdPath(r), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("FIFO %s: %v: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return os.NewFile(uintptr(w), path), nil
}

// fdPath names the file that an open descriptor stands for, even if its own
// name has gone.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// losses counts what was dropped, and says so when it begins and when it ends.
type losses struct {
	log   *slog.Logger
	bytes atomic.Int64
	now   bool
}

func (l *losses) drop(n int, why string) {
	l.bytes.Add(int64(n))
	if !l.now {
		l.now = true
		l.log.Warn("output is dropped", "why", why)
	}
}

func (l *losses) over() {
	if l.now {
		l.now = false
		l.log.Warn("output is delivered again", "dropped_bytes", l.bytes.Load())
	}
}

// A fifoSink is a FIFO of which we hold the writing end only, so that the
// kernel tells whether somebody reads:
//   - a reader that is slow holds the process back, for as long as it likes;
//   - with no reader the FIFO's buffer is filled for whoever comes, then the
//     process waits readerPatience for one, then output is dropped until
//     somebody reads again.
type fifoSink struct {
	f      *os.File
	closed chan struct{}
	once   sync.Once // closes closed

	patience time.Duration
	alone    time.Time // since when the FIFO is full and nobody reads
	lost     losses
}

// Write implements sink.
func (s *fifoSink) Write(b []byte) (int, error) {
	size := len(b)
	c, err := s.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	for len(b) > 0 {
		var n int
		var writeErr error
		// Waits while the FIFO is full and somebody has it open.
		err := c.Write(func(fd uintptr) bool {
			n, writeErr = ignoreEINTR(func() (int, error) { return unix.Write(int(fd), b) })
			if errors.Is(writeErr, unix.EPIPE) {
				n, writeErr = s.leave(int(fd), b)
				return true
			}
			return !errors.Is(writeErr, unix.EAGAIN)
		})
		if err != nil {
			return size - len(b), err
		}
		switch {
		case writeErr == nil:
			b = b[n:]
			s.alone = time.Time{}
			s.lost.over()
		case errors.Is(writeErr, errNobody) && s.waitForReader():
		default:
			s.lost.drop(len(b), writeErr.Error())
			return size, nil
		}
	}
	return size, nil
}

var errNobody = errors.New("nobody reads")

// leave puts bytes into a FIFO that nobody reads, for whoever comes: the
// kernel keeps them while we hold our end.
func (s *fifoSink) leave(fd int, b []byte) (int, error) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Nlink == 0 {
		s.alone = time.Unix(0, 0) // nobody can come
		return 0, errNobody
	}
	r, err := unix.Open(fdPath(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, errNobody
	}
	defer unix.Close(r)
	n, err := ignoreEINTR(func() (int, error) { return unix.Write(fd, b) })
	if errors.Is(err, unix.EAGAIN) {
		return 0, errNobody
	}
	return n, err
}

// waitForReader reports whether it is worth another try.
func (s *fifoSink) waitForReader() bool {
	now := time.Now()
	if s.alone.IsZero() {
		s.alone = now
	}
	if now.Sub(s.alone) >= s.patience {
		return false
	}
	select {
	case <-time.After(readerLook):
		return true
	case <-s.closed:
		return false
	}
}

// finish implements sink. A client that is slow to open its end finds what a
// quick process wrote, and the end of it.
func (s *fifoSink) finish(hurry <-chan struct{}) {
	late := time.NewTimer(s.patience)
	defer late.Stop()
	look := time.NewTicker(readerLook)
	defer look.Stop()
	for !s.settled() {
		select {
		case <-look.C:
		case <-hurry:
			return
		case <-s.closed:
			return
		case <-late.C:
			return
		}
	}
}

// settled reports whether somebody reads, or nobody can.
func (s *fifoSink) settled() bool {
	c, err := s.f.SyscallConn()
	if err != nil {
		return true
	}
	settled := true
	c.Control(func(fd uintptr) {
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) != nil || st.Nlink == 0 {
			return
		}
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := ignoreEINTR(func() (int, error) { return unix.Poll(fds, 0) })
		settled = err != nil || fds[0].Revents&unix.POLLERR == 0
	})
	return settled
}

// Close implements sink. It ends a Write that waits.
func (s *fifoSink) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.f.Close()
}

// A fileSink is a file at whose end is written.
type fileSink struct {
	f    *os.File
	lost losses
}

// Write implements sink.
func (s *fileSink) Write(b []byte) (int, error) {
	n, err := s.f.Write(b)
	if errors.Is(err, os.ErrClosed) {
		return n, err
	}
	if err != nil {
		s.lost.drop(len(b)-n, err.Error())
	} else {
		s.lost.over()
	}
	return len(b), nil
}

// finish implements sink.
func (s *fileSink) finish(<-chan struct{}) {}

// Close implements sink.
func (s *fileSink) Close() error { return s.f.Close() }

func ignoreEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
