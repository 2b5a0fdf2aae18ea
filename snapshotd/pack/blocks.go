package pack

import (
	"io"
	"sync"
)

const (
	// blockSize is how much is compressed at once, in bytes. It decides what a
	// layer looks like: another one makes other bytes.
	blockSize = 512 << 10

	// dictSize is how far back deflate looks.
	dictSize = 32 << 10
)

// A block is a piece of a stream, and what comes of it.
type block struct {
	in   []byte
	dict []byte // what was before it in the stream
	last bool
	out  []byte
	done chan error // has an item once it is compressed
}

// blocks cut a stream into pieces of one size, so that they can be compressed
// at the same time, and in the same way however many are. They are written in
// order.
type blocks struct {
	w    io.Writer
	fill *block // has room

	free  chan *block // has room for every block, as the next two
	jobs  chan *block
	order chan *block
	ended sync.WaitGroup
	once  sync.Once

	// mu guards err, the first that happened.
	mu  sync.Mutex
	err error
}

// newBlocks starts workers, each with an encoder of its own, and one that
// writes to w.
func newBlocks(w io.Writer, workers int, encoder func() (func(b *block) error, error)) (*blocks, error) {
	n := 2 * workers
	p := &blocks{w: w, free: make(chan *block, n), jobs: make(chan *block, n), order: make(chan *block, n)}
	for range n {
		p.free <- &block{done: make(chan error, 1)}
	}
	p.fill = <-p.free
	for range workers {
		encode, err := encoder()
		if err != nil {
			p.stop()
			return nil, err
		}
		p.ended.Go(func() {
			for b := range p.jobs {
				b.done <- encode(b)
			}
		})
	}
	p.ended.Go(p.write)
	return p, nil
}

// write writes the blocks until there are no more.
func (p *blocks) write() {
	for b := range p.order {
		err := <-b.done
		if err == nil && p.failed() == nil {
			_, err = p.w.Write(b.out)
		}
		if err != nil {
			p.mu.Lock()
			if p.err == nil {
				p.err = err
			}
			p.mu.Unlock()
		}
		p.free <- b
	}
}

func (p *blocks) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Write implements io.Writer. An error may be that of an earlier piece.
func (p *blocks) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		if err := p.failed(); err != nil {
			return n, err
		}
		f := p.fill
		m := min(len(b)-n, blockSize-len(f.in))
		f.in = append(f.in, b[n:n+m]...)
		n += m
		if len(f.in) == blockSize {
			p.next(<-p.free)
		}
	}
	return n, nil
}

// next hands over the block that is full, and goes on with another.
func (p *blocks) next(b *block) {
	f := p.fill
	b.in, b.last = b.in[:0], false
	b.dict = append(b.dict[:0], f.in[len(f.in)-min(len(f.in), dictSize):]...)
	p.order <- f
	p.jobs <- f
	p.fill = b
}

// finish hands over the last block and waits until everything is written.
func (p *blocks) finish() error {
	p.fill.last = true
	p.order <- p.fill
	p.jobs <- p.fill
	p.stop()
	return p.err
}

// stop ends the goroutines and waits for them; more than once is fine.
func (p *blocks) stop() {
	p.once.Do(func() {
		close(p.jobs)
		close(p.order)
	})
	p.ended.Wait()
}
