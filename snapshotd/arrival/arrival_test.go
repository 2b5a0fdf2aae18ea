package arrival_test

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/contentd"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/snapshotd/arrival"
)

// A fixture is a blob that arrives in contentd.
type fixture struct {
	*arrival.Blob
	bytes []byte
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	cfg := contentd.Default()
	cfg.Root, cfg.FreeMinMiB = filepath.Join(t.TempDir(), "contentd"), 64
	s, err := contentd.Open(cfg, contentd.Needs{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	scope := namespace.Scope{Name: "one"}
	b := bytes.Repeat([]byte("0123456789"), 1000)
	return fixture{&arrival.Blob{Store: s.In(scope), Files: s.Files(scope), Digest: digest.FromBytes(b), Ingest: "ref"}, b}
}

// begin writes the first bytes of the ingest.
func (f fixture) begin(t *testing.T, b []byte) content.Writer {
	t.Helper()
	w, err := f.Store.Writer(t.Context(), content.WriterOptions{Ref: f.Ingest})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	return w
}

func (f fixture) read(t *testing.T) ([]byte, error) {
	t.Helper()
	r, err := f.Open(t.Context())
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// TestSizeIsNotNeeded reads to the end of what is committed.
func TestSizeIsNotNeeded(t *testing.T) {
	f := newFixture(t)
	w := f.begin(t, f.bytes[:10])
	if err := f.Await(t.Context()); err != nil {
		t.Fatalf("Await: %v", err)
	}
	r, err := f.Open(t.Context())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	if n, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if _, err := w.Write(f.bytes[10:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), 0, f.Digest, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, f.bytes[10:]) {
		t.Errorf("%d bytes, %v; want the other %d", len(b), err, len(f.bytes)-10)
	}
}

func TestWhatStallsIsUnavailable(t *testing.T) {
	t.Run("before its first byte", func(t *testing.T) {
		f := newFixture(t)
		f.Stall = 50 * time.Millisecond
		f.begin(t, nil)
		if err := f.Await(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("Await: %v, want %v", err, errdefs.ErrUnavailable)
		}
	})
	t.Run("after some", func(t *testing.T) {
		f := newFixture(t)
		f.Stall = 50 * time.Millisecond
		f.begin(t, f.bytes[:10])
		if err := f.Await(t.Context()); err != nil {
			t.Fatalf("Await: %v", err)
		}
		if b, err := f.read(t); !errors.Is(err, errdefs.ErrUnavailable) || !bytes.Equal(b, f.bytes[:10]) {
			t.Errorf("read %q, %v; want 10 bytes and %v", b, err, errdefs.ErrUnavailable)
		}
	})
}

// TestWhatIsAbortedBeforeItIsOpened is not waited for: it was there.
func TestWhatIsAbortedBeforeItIsOpened(t *testing.T) {
	f := newFixture(t)
	w := f.begin(t, f.bytes[:10])
	if err := f.Await(t.Context()); err != nil {
		t.Fatalf("Await: %v", err)
	}
	w.Close()
	if err := f.Store.Abort(t.Context(), f.Ingest); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(t.Context()); !errors.Is(err, arrival.ErrNotYet) {
		t.Errorf("Open: %v, want %v", err, arrival.ErrNotYet)
	}
	f.Whole = true
	if err := f.Await(t.Context()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Await: %v, want %v", err, errdefs.ErrNotFound)
	}
}

// TestWhatIsShorterThanItWasIsOther: nobody is given the bytes of two.
func TestWhatIsShorterThanItWasIsOther(t *testing.T) {
	f := newFixture(t)
	w := f.begin(t, f.bytes[:1000])
	if err := f.Await(t.Context()); err != nil {
		t.Fatalf("Await: %v", err)
	}
	r, err := f.Open(t.Context())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	if n, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := w.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 10)); n > 0 || !errors.Is(err, arrival.ErrOther) {
		t.Errorf("%d bytes, %v; want %v", n, err, arrival.ErrOther)
	}
}
