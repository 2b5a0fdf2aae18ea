package stream

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	bufferSize = 32 << 10
	lingerTime = 2 * time.Second        // how long a process that has ended may have heirs that write
	hangupLook = 100 * time.Millisecond // how often a terminal without a program is looked at
)

// Buffers are borrowed for as long as bytes are in them, so that a container
// that says nothing costs no buffer.
type Buffers struct{ pool sync.Pool }

func (b *Buffers) get() *[bufferSize]byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p
	}
	return new([bufferSize]byte)
}

func (b *Buffers) put(p *[bufferSize]byte) { b.pool.Put(p) }

// A pump carries what a process writes to where it is wanted.
type pump struct {
	src  *os.File // not blocking
	dst  sink
	bufs *Buffers

	delivered chan struct{} // closed when nothing more will reach dst
	ended     chan struct{} // closed when the process has ended
	hurried   chan struct{} // closed when nobody is waited for who does not read yet
	stopped   chan struct{} // closed when the pump has to stop
	endOnce   sync.Once
	hurryOnce sync.Once
	stopOnce  sync.Once
}

func newPump(src *os.File, dst sink, bufs *Buffers) *pump {
	return &pump{
		src: src, dst: dst, bufs: bufs,
		delivered: make(chan struct{}),
		ended:     make(chan struct{}),
		hurried:   make(chan struct{}),
		stopped:   make(chan struct{}),
	}
}

// run carries until the last writer has closed the stream. Once the process
// has ended, its heirs have lingerTime; then the reader is told the end, and
// what heirs still write is read and forgotten, so that they are not killed by
// it, until stop.
func (p *pump) run() {
	why := p.carry(p.dst.Write)
	if errors.Is(why, os.ErrDeadlineExceeded) {
		p.sweep()
	}
	p.dst.finish(p.hurried)
	p.dst.Close()
	close(p.delivered)
	if !errors.Is(why, io.EOF) && !errors.Is(why, os.ErrClosed) {
		p.src.SetReadDeadline(time.Time{})
		p.carry(func(b []byte) (int, error) { return len(b), nil })
	}
	p.src.Close()
}

// carry hands what is read to write. It returns why it stopped: io.EOF,
// [os.ErrDeadlineExceeded] when the heirs' time is over, [os.ErrClosed] when
// stopped, or an error of write.
func (p *pump) carry(write func([]byte) (int, error)) error {
	c, err := p.src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		n := 0
		var buf *[bufferSize]byte
		var readErr error
		err := c.Read(func(fd uintptr) bool {
			buf = p.bufs.get()
			n, readErr = ignoreEINTR(func() (int, error) { return unix.Read(int(fd), buf[:]) })
			if errors.Is(readErr, unix.EAGAIN) {
				p.bufs.put(buf) // nothing yet: wait without one
				return false
			}
			return true
		})
		switch {
		case err != nil:
			return err
		case n > 0:
			_, err = write(buf[:n])
		case errors.Is(readErr, unix.EIO):
			err = p.waitForProgram() // a terminal that no program has open
		case readErr != nil:
			err = readErr
		default:
			err = io.EOF
		}
		p.bufs.put(buf)
		if err != nil {
			return err
		}
	}
}

// waitForProgram returns nil if a program may open the terminal again.
func (p *pump) waitForProgram() error {
	select {
	case <-time.After(hangupLook):
		return nil
	case <-p.ended:
		return io.EOF
	case <-p.stopped:
		return os.ErrClosed
	}
}

// sweep delivers what the process itself left in its pipe: at most what a pipe
// holds.
func (p *pump) sweep() {
	c, err := p.src.SyscallConn()
	if err != nil {
		return
	}
	left := bufferSize * 2
	c.Control(func(fd uintptr) {
		if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			left = size
		}
	})
	buf := p.bufs.get()
	defer p.bufs.put(buf)
	for left > 0 {
		var n int
		c.Control(func(fd uintptr) {
			n, err = ignoreEINTR(func() (int, error) { return unix.Read(int(fd), buf[:min(left, bufferSize)]) })
		})
		if err != nil || n <= 0 {
			return
		}
		if _, err := p.dst.Write(buf[:n]); err != nil {
			return
		}
		left -= n
	}
}

// processEnded begins the heirs' time.
func (p *pump) processEnded() {
	p.endOnce.Do(func() {
		close(p.ended)
		p.src.SetReadDeadline(time.Now().Add(lingerTime))
	})
}

// hurry ends the wait for a reader that is not there.
func (p *pump) hurry() { p.hurryOnce.Do(func() { close(p.hurried) }) }

// stop ends the pump at once.
func (p *pump) stop() {
	p.stopOnce.Do(func() {
		close(p.stopped)
		select {
		case <-p.delivered:
		default:
			p.dst.Close()
		}
		p.src.Close()
	})
}
