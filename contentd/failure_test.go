package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
)

// TestBytesThatCannotBeSyncedAreNotTrusted: the kernel may have dropped them and
// say at the next sync that all is well.
func TestBytesThatCannotBeSyncedAreNotTrusted(t *testing.T) {
	for name, end := range map[string]func(w content.Writer) error{
		"Commit": func(w content.Writer) error { return w.Commit(t.Context(), 0, "", nil) },
		"Close":  func(w content.Writer) error { return w.Close() },
	} {
		cfg := testConfig(t)
		p := newPower(t, cfg.Root, 0, true)
		s, err := p.open(cfg, Needs{})
		must(t, err)
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		_, err = w.Write(body)
		must(t, err)
		p.failOn = "sync"
		wantKind(t, name, end(w), unix.EIO)
		_, err = s.In(one).Status(t.Context(), "r")
		wantKind(t, "Status", err, errdefs.ErrNotFound)
		checkFiles(t, s, name)
		put(t, s, one, body)
		closeStore(t, s)
	}
}

func TestCommitThatFailsLateKeepsTheBytes(t *testing.T) {
	for _, what := range []string{"rename", "syncdir", "update"} {
		cfg := testConfig(t)
		p := newPower(t, cfg.Root, 0, true)
		s, err := p.open(cfg, Needs{})
		must(t, err)
		leaveIngest(t, s, one, "r", body)
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		p.failOn = what
		wantKind(t, "Commit", w.Commit(t.Context(), 0, "", nil), unix.EIO)
		if hasFile(t, s, bodyD) {
			t.Errorf("after %s failed: a blob without a record", what)
		}
		if st, err := s.In(one).Status(t.Context(), "r"); err != nil || st.Offset != int64(len(body)) {
			t.Errorf("after %s failed: Status: %+v, %v", what, st, err)
		}
		w, err = s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		must(t, w.Commit(t.Context(), int64(len(body)), bodyD, nil))
		checkFiles(t, s, "after "+what+" failed")
		closeStore(t, s)
	}
}

// TestAbortDuringCommitWinsOrLoses aborts between the steps of a commit.
func TestAbortDuringCommitWinsOrLoses(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	for range 50 {
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		_, err = w.Write(body)
		must(t, err)
		aborted := make(chan error, 1)
		go func() { aborted <- s.In(one).Abort(t.Context(), "r") }()
		commitErr, abortErr := w.Commit(t.Context(), 0, "", nil), <-aborted
		_, err = s.In(one).Info(t.Context(), bodyD)
		switch {
		case commitErr == nil && errors.Is(abortErr, errdefs.ErrNotFound) && err == nil:
			remove(t, s, one, bodyD)
		case errors.Is(commitErr, errdefs.ErrNotFound) && abortErr == nil && errors.Is(err, errdefs.ErrNotFound):
		default:
			t.Fatalf("Commit: %v, Abort: %v, Info: %v", commitErr, abortErr, err)
		}
		s.sweep(t.Context())
		checkFiles(t, s, "after both")
	}
}

func TestCommitThatIsCancelledKeepsTheBytes(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.In(one).Writer(ctx, content.WriterOptions{Ref: "r"})
	must(t, err)
	_, err = w.Write(body)
	must(t, err)
	cancel()
	wantKind(t, "Commit", w.Commit(ctx, 0, "", nil), context.Canceled)
	if st, err := s.In(one).Status(t.Context(), "r"); err != nil || st.Offset != int64(len(body)) {
		t.Errorf("Status: %+v, %v", st, err)
	}
	checkFiles(t, s, "afterwards")
}

// A full is a disk with as much room as a test says.
type full struct {
	osDisk
	free int64
}

func (f *full) Free(string) (int64, error) { return f.free, nil }

func TestDiskThatIsNearlyFullTakesNothingAndGives(t *testing.T) {
	cfg := testConfig(t)
	cfg.FreeMinMiB = 100
	f := &full{free: 1 << 40}
	s, err := open(cfg, Needs{}, f, func(db *kv.DB) database { return db })
	must(t, err)
	defer closeStore(t, s)
	in := s.In(one)
	d := put(t, s, one, body)
	leaveIngest(t, s, one, "left", body)
	writing, err := in.Writer(t.Context(), content.WriterOptions{Ref: "writing"})
	must(t, err)

	f.free = 101 << 20
	_, err = in.Writer(t.Context(), content.WriterOptions{Ref: "large", Total: 2 << 20})
	wantKind(t, "Writer of more than there is", err, errdefs.ErrResourceExhausted)
	f.free = 99 << 20
	_, err = in.Writer(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "Writer", err, errdefs.ErrResourceExhausted)
	if errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Writer: %v; clients would try for ever", err)
	}
	_, err = in.Status(t.Context(), "r")
	wantKind(t, "Status", err, errdefs.ErrNotFound)
	part := make([]byte, 1<<20)
	for written := 0; ; written++ {
		if _, err = writing.Write(part); err != nil {
			break
		}
		if written > 16 {
			t.Fatal("Write goes on for ever")
		}
	}
	wantKind(t, "Write", err, errdefs.ErrResourceExhausted)
	must(t, writing.Close())

	if b, err := content.ReadAll(t.Context(), in, d, 1<<20); err != nil || !bytes.Equal(b, body) {
		t.Errorf("ReadAll: %d bytes, %v", len(b), err)
	}
	must(t, in.Abort(t.Context(), "left"))
	must(t, in.Abort(t.Context(), "writing"))
	// What needs no room is done.
	w, err := s.In(two).Writer(t.Context(), content.WriterOptions{Ref: "r", Expected: d})
	must(t, err)
	must(t, w.Commit(t.Context(), 0, d, nil))
	remove(t, s, one, d)
	remove(t, s, two, d)
	s.sweep(t.Context())
	checkFiles(t, s, "at the end")
	f.free = 1 << 40
	put(t, s, one, body)
}

// TestFullDiskIsSurvived fills a real one.
func TestFullDiskIsSurvived(t *testing.T) {
	mounted := smallDisk(t, "ext4")
	cfg := testConfig(t)
	cfg.Root = filepath.Join(mounted, "contentd")
	s, err := Open(cfg, Needs{})
	must(t, err)
	defer closeStore(t, s)

	var all []digest.Digest
	for i := 0; ; i++ {
		b := bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), 1<<20) // 8 MiB
		o := content.WriterOptions{Ref: "r", Expected: digest.FromBytes(b)}
		if err = content.Put(t.Context(), s.In(one), o, bytes.NewReader(b), nil); err != nil {
			break
		}
		if all = append(all, o.Expected); len(all) > 100 {
			t.Fatal("the disk is larger than it is")
		}
	}
	wantKind(t, "Put", err, errdefs.ErrResourceExhausted)
	t.Logf("full after %d blobs: %v", len(all), err)
	// Somebody else takes the rest.
	rest, err := os.Create(filepath.Join(mounted, "rest"))
	must(t, err)
	defer rest.Close()
	for err == nil {
		_, err = rest.Write(make([]byte, 1<<20))
	}
	wantKind(t, "filling the rest", err, unix.ENOSPC)

	for _, d := range all {
		if _, err := content.ReadAll(t.Context(), s.In(one), d, 8<<20); err != nil {
			t.Errorf("ReadAll: %v", err)
		}
		remove(t, s, one, d)
	}
	s.sweep(t.Context())
	if err := s.In(one).Abort(t.Context(), "r"); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Abort: %v", err)
	}
	checkFiles(t, s, "at the end")
	must(t, rest.Truncate(0))
	put(t, s, one, body)
}

// A short is a disk on which a write ends before its time, once.
type short struct {
	osDisk
	at int64 // offset at which it ends, or 0
}

func (s *short) Create(name string) (file, error) {
	f, err := s.osDisk.Create(name)
	return shortFile{f, s}, err
}

type shortFile struct {
	file
	s *short
}

func (f shortFile) WriteAt(p []byte, off int64) (int, error) {
	if end := f.s.at; off <= end && end < off+int64(len(p)) {
		f.s.at = 0
		n, err := f.file.WriteAt(p[:end-off], off)
		return n, errors.Join(err, unix.ENOSPC)
	}
	return f.file.WriteAt(p, off)
}

// TestWriteThatEndsEarlyIsHashedAsFarAsItWent: what is hashed beside the write is
// no more than what was written.
func TestWriteThatEndsEarlyIsHashedAsFarAsItWent(t *testing.T) {
	b := bytes.Repeat([]byte("what is written beside being hashed, "), 1<<16)
	for _, part := range []int{1000, 64 << 10, 1 << 20} {
		for _, at := range []int64{1, 999_999, 1 << 20} {
			d := &short{at: at}
			s, err := open(testConfig(t), Needs{}, d, func(db *kv.DB) database { return db })
			must(t, err)
			w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
			must(t, err)
			var written int64
			for err == nil {
				n := 0
				n, err = w.Write(b[written : written+int64(part)])
				written += int64(n)
			}
			wantKind(t, "Write", err, errdefs.ErrResourceExhausted)
			if written != at || w.Digest() != digest.FromBytes(b[:at]) {
				t.Errorf("wrote %d of %d, %s", written, at, w.Digest())
			}
			_, err = w.Write(b[written:])
			must(t, err)
			must(t, w.Commit(t.Context(), int64(len(b)), digest.FromBytes(b), nil))
			if got, err := content.ReadAll(t.Context(), s.In(one), digest.FromBytes(b), 1<<30); err != nil || !bytes.Equal(got, b) {
				t.Errorf("ReadAll: %d bytes, %v", len(got), err)
			}
			closeStore(t, s)
		}
	}
}

// TestIngestThatACommitGaveBackSurvivesThePower: it had been durable before, and
// a commit that fails does not make it less.
func TestIngestThatACommitGaveBackSurvivesThePower(t *testing.T) {
	for _, what := range []string{"syncdir", "update"} {
		cfg := testConfig(t)
		p := newPower(t, cfg.Root, 0, false)
		s, err := p.open(cfg, Needs{})
		must(t, err)
		leaveIngest(t, s, one, "r", body)
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		p.failOn = what
		wantKind(t, "Commit", w.Commit(t.Context(), 0, "", nil), unix.EIO)
		must(t, p.cut())
		closeStore(t, s)
		p.left.restore(t, cfg.Root)
		s = openStore(t, cfg, nil)
		if st, err := s.In(one).Status(t.Context(), "r"); err != nil || st.Offset != int64(len(body)) {
			t.Errorf("after %s failed and the power went: Status: %+v, %v", what, st, err)
		}
	}
}
