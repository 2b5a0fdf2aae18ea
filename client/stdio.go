package client

import (
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gantryd/gantry/services/task"
)

// Streams are what a process's standard streams are connected to. One that is
// nil is /dev/null.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer // not used with a terminal, which has one output

	// File is a file of the node to which the output is added instead of
	// going to Out and Err. It needs no client that reads it.
	File string

	Terminal bool
}

// idleMax is how long the streams of a process that has ended may be silent
// until they are taken for ended too: programs that it started may hold them
// for ever.
const idleMax = 4 * time.Second

// A stdio is the client's ends of a process's streams: FIFOs in a directory of
// their own.
type stdio struct {
	dir string // to be removed
	io  task.IO

	in      *os.File
	holds   []*os.File // writing ends, so that no output ends before it has begun
	outputs []*output
	copies  sync.WaitGroup // of outputs

	begun, ending sync.Once
	open          chan struct{} // closed when the other side has opened its ends
	done          chan struct{} // closed by close
}

// An output is copied from a FIFO to a writer.
type output struct {
	from *os.File
	to   io.Writer

	mu    sync.Mutex
	ended bool // guarded by mu: the process has, so silence means the end
}

// start copies until close. It calls inEnded when In is at its end.
//
// A Read of In that does not return keeps its goroutine beyond close: only who
// made In can end that.
func (s *stdio) start(in io.Reader, inEnded func()) {
	for _, o := range s.outputs {
		s.copies.Go(o.copy)
	}
	if s.in != nil {
		go func() {
			io.Copy(s.in, in)
			// A FIFO that nobody has open forgets what is in it.
			select {
			case <-s.open:
				s.in.Close()
				inEnded()
			case <-s.done:
			}
		}()
	}
}

// opened is called when the other side has opened its ends.
func (s *stdio) opened() {
	s.begun.Do(func() {
		for _, f := range s.holds {
			f.Close()
		}
		close(s.open)
	})
}

// drain waits until the outputs of a process that has ended are at their ends.
func (s *stdio) drain() {
	for _, o := range s.outputs {
		o.end()
	}
	s.copies.Wait()
}

// close ends all copying and removes the FIFOs.
func (s *stdio) close() {
	s.ending.Do(func() {
		close(s.done)
		s.opened()
		if s.in != nil {
			s.in.Close()
		}
		for _, o := range s.outputs {
			o.from.Close()
		}
		s.copies.Wait()
		if s.dir != "" {
			os.RemoveAll(s.dir)
		}
	})
}

// end says that silence from now on is the end.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.from.SetReadDeadline(time.Now().Add(idleMax))
}

// copy copies to the end. When nobody wants to have it, it reads on, so that
// the process is not held up.
func (o *output) copy() {
	buf := make([]byte, 32<<10)
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if _, err := o.to.Write(buf[:n]); err != nil {
				o.to = io.Discard
			}
			o.more()
		}
		if err != nil {
			return
		}
	}
}

// more gives the other side more time, as it has used what it had.
func (o *output) more() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		o.from.SetReadDeadline(time.Now().Add(idleMax))
	}
}

// openStdio makes the FIFOs of the streams that are wanted, in a new directory
// below dir.
func openStdio(dir string, s Streams) (_ *stdio, err error) {
	o := &stdio{io: task.IO{Terminal: s.Terminal}, open: make(chan struct{}), done: make(chan struct{})}
	if s.File != "" {
		if !filepath.IsAbs(s.File) {
			return nil, invalid("output to %q: not an absolute path", s.File)
		}
		uri := (&url.URL{Scheme: "file", Path: s.File}).String()
		if o.io.Stdout = uri; !s.Terminal {
			o.io.Stderr = uri
		}
		s.Out, s.Err = nil, nil
	}
	if s.In == nil && s.Out == nil && (s.Err == nil || s.Terminal) {
		return o, nil
	}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.dir, err = os.MkdirTemp(dir, "gantry-io-"); err != nil {
		return nil, err
	}
	if s.In != nil {
		if o.in, o.io.Stdin, err = openInput(o.dir, "stdin"); err != nil {
			return nil, err
		}
	}
	if s.Out != nil {
		if o.io.Stdout, err = o.output("stdout", s.Out); err != nil {
			return nil, err
		}
	}
	if s.Err != nil && !s.Terminal {
		if o.io.Stderr, err = o.output("stderr", s.Err); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (s *stdio) output(name string, to io.Writer) (string, error) {
	from, hold, path, err := openOutput(s.dir, name)
	if err != nil {
		return "", err
	}
	s.holds = append(s.holds, hold)
	s.outputs = append(s.outputs, &output{from: from, to: to})
	return path, nil
}
