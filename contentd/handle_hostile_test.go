package contentd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
)

// A keeper finds a way to be able to write a file that it has closed, and
// returns how to write it and how to let go of it.
type keeper func(t *testing.T, f *os.File) (write func() error, release func())

// keepers are the ways that a process has. This one is root, or the owner of the
// file, as only the worst of peers are.
var keepers = map[string]keeper{
	"a descriptor": func(t *testing.T, f *os.File) (func() error, func()) {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		kept := os.NewFile(uintptr(fd), "kept")
		return scribble(kept), func() { kept.Close() }
	},
	"a descriptor of its own making": func(t *testing.T, f *os.File) (func() error, func()) {
		kept, err := os.OpenFile(self(f), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return scribble(kept), func() { kept.Close() }
	},
	"a mapping": func(t *testing.T, f *os.File) (func() error, func()) {
		rw, err := os.OpenFile(self(f), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer rw.Close()
		m, err := unix.Mmap(int(rw.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
				copy(m, "scribbled")
				return nil
			}, func() {
				if err := unix.Munmap(m); err != nil {
					t.Error(err)
				}
			}
	},
	"a descriptor in flight": func(t *testing.T, f *os.File) (func() error, func()) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
		unix.Close(pair[0]) // it stays in flight
		return func() error { return nil }, func() { unix.Close(pair[1]) }
	},
	"a child": func(t *testing.T, f *os.File) (func() error, func()) {
		cmd := exec.Command("/bin/sh", "-c", "read line")
		cmd.ExtraFiles = []*os.File{f}
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() error { return nil }, func() {
			in.Close()
			_ = cmd.Wait() // of read, which had nothing to read
		}
	},
}

func self(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func scribble(f *os.File) func() error {
	return func() error {
		_, err := f.WriteAt([]byte("scribbled"), 0)
		return err
	}
}

// TestWhoCanStillWriteCommitsNothing keeps the file in every way, and commits:
// nothing is committed, the ingest is there, and whoever goes on with it is not
// written to.
func TestWhoCanStillWriteCommitsNothing(t *testing.T) {
	for name, keep := range keepers {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, testConfig(t), nil)
			w := lend(t, s, body)
			f, err := w.File(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			write, release := keep(t, f)
			f.Close()
			if err := w.Commit(t.Context(), int64(len(body)), bodyD, nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Errorf("Commit: %v, want failed precondition", err)
			}
			if st, err := s.In(one).Status(t.Context(), "r"); err != nil || st.Offset != int64(len(body)) {
				t.Errorf("Status: %+v, %v; want the ingest kept", st, err)
			}
			// Another writer puts the same bytes under the same ref, with the
			// first one's hand in the old file.
			plain, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
			if err != nil {
				t.Fatal(err)
			}
			if st, err := plain.Status(t.Context()); err != nil || st.Offset != 0 {
				t.Errorf("Status: %+v, %v; want to start over", st, err)
			}
			if _, err := plain.Write(body); err != nil {
				t.Fatal(err)
			}
			if err := write(); err != nil {
				t.Error(err)
			}
			if err := plain.Commit(t.Context(), int64(len(body)), bodyD, nil); err != nil {
				t.Fatalf("Commit: %v", err)
			}
			if err := write(); err != nil {
				t.Error(err)
			}
			wantWhole(t, s, bodyD, body)
			release()
		})
	}
}

// TestWhoLetsGoCommits keeps the file in every way, lets go of it, and commits
// what it closed.
func TestWhoLetsGoCommits(t *testing.T) {
	for name, keep := range keepers {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, testConfig(t), nil)
			w := lend(t, s, body)
			f, err := w.File(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, release := keep(t, f)
			f.Close()
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			release()
			plain, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
			if err != nil {
				t.Fatal(err)
			}
			if err := plain.Commit(t.Context(), int64(len(body)), bodyD, nil); err != nil {
				t.Errorf("Commit: %v", err)
			}
			wantWhole(t, s, bodyD, body)
		})
	}
}

// lend returns a writer of ref r whose file has b and is open nowhere.
func lend(t *testing.T, s *Store, b []byte) content.FileWriter {
	t.Helper()
	w, err := s.Files(one).FileWriter(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	f, err := w.File(t.Context())
	if err == nil {
		_, err = f.Write(b)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return w
}

func wantWhole(t *testing.T, s *Store, d digest.Digest, b []byte) {
	t.Helper()
	got, err := os.ReadFile(s.path(d))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("the blob's file: %d bytes, %v; want %d that are right", len(got), err, len(b))
	}
}

// A racing disk does something between the lease and the first byte.
type racing struct {
	osDisk
	race func()
}

func (d racing) Seal(name string) (file, func() error, error) {
	f, held, err := d.osDisk.Seal(name)
	if err == nil {
		d.race()
	}
	return f, held, err
}

// TestWriteDuringTheHashIsNoBlob opens the file when it is sealed already. The
// kernel holds up who waits, and turns away who does not; either way the bytes
// are not committed that somebody may be about to change.
func TestWriteDuringTheHashIsNoBlob(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	w := lend(t, s, body)
	name := s.ingestPath(w.(*fileWriter).w.name)
	s.disk = racing{race: func() {
		f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("open of a file that is sealed: %v", err)
		}
		if err == nil {
			f.Close()
		}
	}}
	if err := w.Commit(t.Context(), 0, "", nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Commit: %v, want failed precondition", err)
	}
	if _, err := s.In(one).Info(t.Context(), bodyD); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Info: %v, want not found", err)
	}
}

// TestRestartDoesNotForgetWhoHasAFile ends contentd while a client has a file,
// with which the client goes on.
func TestRestartDoesNotForgetWhoHasAFile(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Files(one).FileWriter(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := w.File(t.Context())
	if err == nil {
		_, err = kept.Write(body)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	// A kill closes what contentd has.
	w.(*fileWriter).w.closeFile()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, cfg, nil)
	plain, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := scribble(kept)(); err != nil {
		t.Fatal(err)
	}
	if err := plain.Commit(t.Context(), int64(len(body)), bodyD, nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantWhole(t, s, bodyD, body)
}

// TestBlobThatIsReadIsNotWritten tries what a reader could.
func TestBlobThatIsReadIsNotWritten(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	if err := content.Put(t.Context(), s.In(one), content.WriterOptions{Ref: "r"}, bytes.NewReader(body), nil); err != nil {
		t.Fatal(err)
	}
	f, err := s.Files(one).OpenFile(t.Context(), bodyD)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("written")
	}
	if _, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("mapped to be written")
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestNoFileToWriteWithoutLeases is a store whose file system cannot tell.
func TestNoFileToWriteWithoutLeases(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	s.lendless = unix.EINVAL
	if _, err := s.Files(one).FileWriter(t.Context(), content.WriterOptions{Ref: "r"}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("FileWriter: %v, want not implemented", err)
	}
	// Those who use files by themselves notice nothing.
	through := throughFiles(t, s).In(one)
	if err := content.Put(t.Context(), through, content.WriterOptions{Ref: "r"}, bytes.NewReader(body), nil); err != nil {
		t.Errorf("Put: %v", err)
	}
	wantWhole(t, s, bodyD, body)
}
