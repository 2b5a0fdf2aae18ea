package stream

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/task"
)

const patience = 20 * time.Second

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func mkfifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sinkOf(t *testing.T, uri string) *fifoSink {
	t.Helper()
	s, err := openSink(uri, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*fifoSink)
}

// soon fails the test unless do returns.
func soon(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: hangs", what)
	}
}

func TestOutputIsKeptForAReaderThatComes(t *testing.T) {
	path := mkfifo(t, "out")
	s := sinkOf(t, path)
	soon(t, "write without a reader", func() { s.Write([]byte("early ")) })
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "write with a reader", func() { s.Write([]byte("late")) })
	s.Close()
	got, err := io.ReadAll(r)
	if string(got) != "early late" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestOutputSurvivesAReaderThatGoesAndComesAgain(t *testing.T) {
	path := mkfifo(t, "out")
	s := sinkOf(t, path)
	r, _ := os.Open(path)
	s.Write([]byte("one"))
	b := make([]byte, 3)
	io.ReadFull(r, b)
	r.Close()
	soon(t, "write", func() { s.Write([]byte("two")) })
	r, _ = os.Open(path)
	defer r.Close()
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "two" {
		t.Errorf("the second reader gets %q, %v", b, err)
	}
	if n := s.lost.bytes.Load(); n != 0 {
		t.Errorf("%d bytes lost", n)
	}
}

func TestAMissingReaderDoesNotHoldTheWriterForEver(t *testing.T) {
	path := mkfifo(t, "out")
	s := sinkOf(t, path)
	s.patience = 300 * time.Millisecond
	big := bytes.Repeat([]byte("x"), 200<<10)
	began := time.Now()
	soon(t, "write", func() { s.Write(big) })
	if took := time.Since(began); took < s.patience {
		t.Errorf("gave up after %v, want %v", took, s.patience)
	}
	soon(t, "the next write", func() { s.Write([]byte("y")) })
	lost := s.lost.bytes.Load()
	if lost == 0 || lost > int64(len(big)) {
		t.Errorf("%d bytes lost of %d", lost, len(big))
	}
	// Who comes then has what was kept, and what is written from now on.
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := make([]byte, int64(len(big))+1-lost)
	if _, err := io.ReadFull(r, kept); err != nil {
		t.Fatal(err)
	}
	soon(t, "write to the new reader", func() { s.Write([]byte("new")) })
	b := make([]byte, 3)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "new" {
		t.Errorf("the reader gets %q, %v", b, err)
	}
	r.Close()
}

func TestASlowReaderHoldsTheWriter(t *testing.T) {
	path := mkfifo(t, "out")
	s := sinkOf(t, path)
	s.patience = 0
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := bytes.Repeat([]byte("x"), 1<<20)
	done := make(chan struct{})
	go func() {
		s.Write(big)
		close(done)
	}()
	select {
	case <-done:
		t.Fatal("a write of 1 MiB did not wait for the reader")
	case <-time.After(100 * time.Millisecond):
	}
	got := make([]byte, len(big))
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	<-done
	if !bytes.Equal(got, big) || s.lost.bytes.Load() != 0 {
		t.Errorf("%d bytes lost", s.lost.bytes.Load())
	}
}

func TestAReaderThatGoesWhileWeWaitLetsTheWriterGo(t *testing.T) {
	path := mkfifo(t, "out")
	s := sinkOf(t, path)
	s.patience = 0
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		s.Write(bytes.Repeat([]byte("x"), 1<<20))
		close(done)
	}()
	r.Read(make([]byte, 1))
	r.Close()
	soon(t, "write", func() { <-done })
}

func TestCloseEndsAWriteThatWaits(t *testing.T) {
	for _, withReader := range []bool{true, false} {
		path := mkfifo(t, "out")
		s := sinkOf(t, path)
		if withReader {
			r, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
		}
		done := make(chan struct{})
		began := make(chan struct{})
		go func() {
			close(began)
			s.Write(bytes.Repeat([]byte("x"), 1<<20))
			close(done)
		}()
		<-began
		s.Close()
		soon(t, "write after close", func() { <-done })
	}
}

func TestAFullDiskDropsAndCountsAndGoesOn(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs /dev/full: ", err)
	}
	s := &fileSink{f: f, lost: losses{log: quiet()}}
	for range 2 {
		if n, err := s.Write([]byte("12345")); n != 5 || err != nil {
			t.Errorf("write says %d, %v", n, err)
		}
	}
	if got := s.lost.bytes.Load(); got != 10 {
		t.Errorf("%d bytes lost, want 10", got)
	}
	good, err := os.Create(filepath.Join(t.TempDir(), "good"))
	if err != nil {
		t.Fatal(err)
	}
	s.f.Close()
	s.f = good
	s.Write([]byte("again"))
	if b, _ := os.ReadFile(good.Name()); string(b) != "again" {
		t.Errorf("the file says %q", b)
	}
	s.Close()
}

func TestStreamURIs(t *testing.T) {
	for _, tt := range []struct {
		uri  string
		want error
	}{
		{"relative", errdefs.ErrInvalidArgument},
		{"file://relative", errdefs.ErrInvalidArgument},
		{"/absent/fifo", errdefs.ErrInvalidArgument},
		{"/dev/null", errdefs.ErrInvalidArgument},
		{"ftp:///x", errdefs.ErrInvalidArgument},
		{"binary:///bin/cat", errdefs.ErrNotImplemented},
		{"binary://", errdefs.ErrNotImplemented},
	} {
		if _, err := openSink(tt.uri, quiet()); !errors.Is(err, tt.want) {
			t.Errorf("%q: error is %v, want %v", tt.uri, err, tt.want)
		}
	}
}

func TestStreamsThatNobodyEverOpensLeaveNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	before := len(openFiles(t))
	for range 10 {
		var paths [3]string
		for i, name := range []string{"in", "out", "err"} {
			paths[i] = filepath.Join(dir, name)
			os.Remove(paths[i])
			if err := unix.Mkfifo(paths[i], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(Config{
			IO:     task.IO{Stdin: paths[0], Stdout: paths[1], Stderr: paths[2]},
			Bundle: dir, Buffers: &Buffers{}, Log: quiet(),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Begin()
		s.Child[1].Write([]byte("nobody reads this"))
		s.Given()
		soon(t, "close", s.Close)
		soon(t, "close again", s.Close)
	}
	if after := openFiles(t); len(after) > before {
		t.Errorf("%d files open before, %d after: %v", before, len(after), after)
	}
}

func openFiles(t *testing.T) []string {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var l []string
	for _, n := range names {
		to, err := os.Readlink("/proc/self/fd/" + n.Name())
		if err == nil && !strings.HasPrefix(to, "anon_inode:") {
			l = append(l, to)
		}
	}
	return l
}

func TestWhatAProcessLeftInItsPipeIsDeliveredThoughHeirsHoldIt(t *testing.T) {
	path := mkfifo(t, "out")
	s, err := Open(Config{IO: task.IO{Stdout: path}, Buffers: &Buffers{}, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	heir, err := unix.Dup(int(s.Child[1].Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(heir)
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// More than the FIFO holds: the rest waits in the pipe for a slow reader.
	want := bytes.Repeat([]byte("0123456789abcdef"), 6<<10)
	s.Begin()
	soon(t, "the process's write", func() { s.Child[1].Write(want) })
	s.Given()
	s.ProcessEnded()
	got := make(chan []byte, 1)
	go func() {
		// The heirs' time passes before the first byte is read.
		<-time.After(lingerTime + 200*time.Millisecond)
		b, _ := io.ReadAll(r)
		got <- b
	}()
	soon(t, "read to the end", func() {
		if b := <-got; !bytes.Equal(b, want) {
			t.Errorf("%d bytes delivered of %d", len(b), len(want))
		}
	})
	// The heir is not killed by its next word.
	if _, err := unix.Write(heir, []byte("heir")); err != nil {
		t.Errorf("the heir's write: %v", err)
	}
	s.Close()
}

func TestStandardInputOutlivesItsClients(t *testing.T) {
	path := mkfifo(t, "in")
	s, err := Open(Config{IO: task.IO{Stdin: path}, Buffers: &Buffers{}, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Begin()
	process := s.Child[0]
	b := make([]byte, 3)
	for _, word := range []string{"one", "two"} {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, word)
		w.Close()
		if _, err := io.ReadFull(process, b); err != nil || string(b) != word {
			t.Errorf("the process reads %q, %v, want %q", b, err, word)
		}
	}
	s.CloseStdin()
	soon(t, "the end of standard input", func() {
		if n, err := process.Read(b); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("the process reads %d bytes, %v, want the end", n, err)
		}
	})
}
