package layer

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// pieceSize is how much of a file is handed over at once, in bytes: a whole
	// file, mostly. A piece of zeros in a file of several is left out of it.
	pieceSize = 64 << 10

	// pieceCount is how many pieces wait at most.
	pieceCount = 32

	// writebackSize is after how many bytes of a file the kernel is asked to
	// begin with writing them: they are on their way to the disk while the
	// rest is unpacked, and not all left for the commit, which waits for them.
	writebackSize = 8 << 20
)

var zeros [pieceSize]byte

// A finisher writes files and sets their attributes while the extractor makes
// the next. The extractor has decided where each file is; the finisher knows it
// by its descriptor only.
type finisher struct {
	dropped *atomic.Int64
	pieces  chan piece
	free    chan []byte
	ended   chan struct{}
	once    sync.Once

	// mu guards err, the first that happened.
	mu  sync.Mutex
	err error
}

// A piece of a file is what comes next of it. With the last one come its
// attributes, or none, if it is not going to be whole. One with a waiter is none.
type piece struct {
	fd         int
	at         int64
	body       []byte
	last       bool
	attributes *attributes
	waiter     chan struct{}
}

func startFinisher(x *extractor) *finisher {
	f := &finisher{
		dropped: &x.dropped,
		pieces:  make(chan piece, pieceCount),
		free:    make(chan []byte, pieceCount),
		ended:   make(chan struct{}),
	}
	for range pieceCount {
		f.free <- nil
	}
	go f.work()
	return f
}

func (f *finisher) work() {
	defer close(f.ended)
	for p := range f.pieces {
		if p.waiter != nil {
			close(p.waiter)
			continue
		}
		err := p.finish(f.dropped)
		if p.last {
			unix.Close(p.fd)
		}
		if p.body != nil {
			f.free <- p.body[:cap(p.body)]
		}
		if err != nil {
			f.mu.Lock()
			if f.err == nil {
				f.err = kind(err)
			}
			f.mu.Unlock()
		}
	}
}

func (p *piece) finish(dropped *atomic.Int64) error {
	end := p.at + int64(len(p.body))
	switch {
	case len(p.body) == 0:
	case p.at == 0 && p.last, !bytes.Equal(p.body, zeros[:len(p.body)]):
		if err := pwrite(p.fd, p.body, p.at); err != nil {
			return err
		}
	case p.last:
		if err := unix.Ftruncate(p.fd, end); err != nil {
			return err
		}
	}
	if from := end &^ (writebackSize - 1); from > p.at && from > 0 {
		// Only asked for: the commit is what makes sure.
		_ = unix.SyncFileRange(p.fd, from-writebackSize, writebackSize, unix.SYNC_FILE_RANGE_WRITE)
	}
	if p.attributes == nil {
		return nil
	}
	return p.attributes.setFile(p.fd, dropped)
}

func pwrite(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// buffer returns one that has room for a piece.
func (f *finisher) buffer() []byte {
	b := <-f.free
	if b == nil {
		b = make([]byte, pieceSize)
	}
	return b
}

// add hands a piece over, and returns the error of an earlier one.
func (f *finisher) add(p piece) error {
	f.pieces <- p
	return f.failed()
}

func (f *finisher) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// wait returns when every file is finished.
func (f *finisher) wait() error {
	waiter := make(chan struct{})
	f.pieces <- piece{waiter: waiter}
	<-waiter
	return f.failed()
}

// stop ends the goroutine and waits for it; more than once is fine.
func (f *finisher) stop() {
	f.once.Do(func() { close(f.pieces) })
	<-f.ended
}

// futimens sets the times of an open file. The name of the call's null pointer
// is missing from package unix.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
