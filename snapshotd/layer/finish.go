package layer

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// smallMax is the largest file that is handed to the finisher, in bytes,
	// and smallCount how many of them wait for it at most.
	smallMax   = 64 << 10
	smallCount = 16
)

// A finisher writes small files and sets their attributes while the extractor
// makes the next. The extractor has decided where each file is; the finisher
// knows it by its descriptor only.
type finisher struct {
	dropped *atomic.Int64
	jobs    chan unfinished
	free    chan []byte
	ended   chan struct{}
	once    sync.Once

	// mu guards err, the first that happened.
	mu  sync.Mutex
	err error
}

// An unfinished file is open and empty. One with a waiter is none.
type unfinished struct {
	fd         int
	body       []byte
	attributes *attributes
	waiter     chan struct{}
}

func startFinisher(x *extractor) *finisher {
	f := &finisher{
		dropped: &x.dropped,
		jobs:    make(chan unfinished, smallCount),
		free:    make(chan []byte, smallCount),
		ended:   make(chan struct{}),
	}
	for range smallCount {
		f.free <- make([]byte, smallMax)
	}
	go f.work()
	return f
}

func (f *finisher) work() {
	defer close(f.ended)
	for u := range f.jobs {
		if u.waiter != nil {
			close(u.waiter)
			continue
		}
		err := u.finish(f.dropped)
		unix.Close(u.fd)
		f.free <- u.body[:cap(u.body)]
		if err != nil {
			f.mu.Lock()
			if f.err == nil {
				f.err = kind(err)
			}
			f.mu.Unlock()
		}
	}
}

func (u *unfinished) finish(dropped *atomic.Int64) error {
	if err := pwrite(u.fd, u.body, 0); err != nil {
		return err
	}
	return u.attributes.setFile(u.fd, dropped)
}

// buffer returns one that has room for a small file.
func (f *finisher) buffer() []byte { return <-f.free }

// add hands a file over, and returns the error of an earlier one.
func (f *finisher) add(u unfinished) error {
	f.jobs <- u
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
	f.jobs <- unfinished{waiter: waiter}
	<-waiter
	return f.failed()
}

// stop ends the goroutine and waits for it; more than once is fine.
func (f *finisher) stop() {
	f.once.Do(func() { close(f.jobs) })
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
