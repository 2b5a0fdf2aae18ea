package content_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/namespace"
)

func newStore() content.Store {
	return contenttest.NewMemory(nil).In(namespace.Scope{Name: "ns"})
}

func TestPutResumes(t *testing.T) {
	s := newStore()
	b := []byte(strings.Repeat("0123456789", 1000))
	o := content.WriterOptions{Ref: "r", Total: int64(len(b)), Expected: digest.FromBytes(b)}
	broken := errors.New("broken")
	for _, r := range []io.Reader{
		io.MultiReader(bytes.NewReader(b[:3000]), failing{broken}),
		io.MultiReader(bytes.NewReader(b[:3000]), failing{broken}), // nothing new
		io.MultiReader(bytes.NewReader(b[:7000]), failing{broken}),
	} {
		if err := content.Put(t.Context(), s, o, r, nil); !errors.Is(err, broken) {
			t.Fatalf("Put: %v, want the reader's error", err)
		}
	}
	if st, err := s.Status(t.Context(), "r"); err != nil || st.Offset != 7000 {
		t.Fatalf("Status: %+v, %v", st, err)
	}
	if err := content.Put(t.Context(), s, o, bytes.NewReader(b), map[string]string{"a": "1"}); err != nil {
		t.Fatalf("Put: %v", err)
	}
	got, err := content.ReadAll(t.Context(), s, o.Expected, int64(len(b)))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("ReadAll: %d bytes, %v", len(got), err)
	}
	if err := content.Put(t.Context(), s, o, failing{broken}, nil); err != nil {
		t.Errorf("Put of what is there: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestPutOfOtherBytesLeavesNothing(t *testing.T) {
	s := newStore()
	o := content.WriterOptions{Ref: "r", Expected: digest.FromString("right")}
	if err := content.Put(t.Context(), s, o, strings.NewReader("wrong"), nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Put: %v", err)
	}
	if _, err := s.Status(t.Context(), "r"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Status: %v", err)
	}
	if err := content.Put(t.Context(), s, o, strings.NewReader("right"), nil); err != nil {
		t.Errorf("Put of the right ones: %v", err)
	}
}

func TestPutTakesWhatAnotherNamespaceHas(t *testing.T) {
	m := contenttest.NewMemory(nil)
	o := content.WriterOptions{Ref: "r", Total: 5, Expected: digest.FromString("bytes")}
	if err := content.Put(t.Context(), m.In(namespace.Scope{Name: "one"}), o, strings.NewReader("bytes"), nil); err != nil {
		t.Fatal(err)
	}
	if err := content.Put(t.Context(), m.In(namespace.Scope{Name: "two"}), o, failing{errors.New("read")}, nil); err != nil {
		t.Errorf("Put: %v", err)
	}
}

func TestWaitOutlastsAnotherWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		w, err := s.Writer(t.Context(), content.WriterOptions{Ref: "r"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := content.Wait(ctx, s, content.WriterOptions{Ref: "r"}); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("Wait until its context ends: %v", err)
		}
		time.AfterFunc(time.Hour, func() { w.Close() })
		start := time.Now()
		w2, err := content.Wait(t.Context(), s, content.WriterOptions{Ref: "r"})
		if err != nil || time.Since(start) < time.Hour || time.Since(start) > time.Hour+time.Second {
			t.Fatalf("Wait: %v after %v", err, time.Since(start))
		}
		w2.Close()
	})
}

func TestReadAllVouchesForTheBytes(t *testing.T) {
	s := newStore()
	d := digest.FromString("bytes")
	if err := content.Put(t.Context(), s, content.WriterOptions{Ref: "r"}, strings.NewReader("bytes"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := content.ReadAll(t.Context(), s, d, 4); !errors.Is(err, errdefs.ErrOutOfRange) {
		t.Errorf("ReadAll of at most 4: %v", err)
	}
	if _, err := content.ReadAll(t.Context(), s, digest.FromString("x"), 4); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("ReadAll of nothing: %v", err)
	}
	for name, b := range map[string]string{"other": "BYTES", "short": "byte", "none": ""} {
		if _, err := content.ReadAll(t.Context(), lying{s, b}, d, 5); !errors.Is(err, errdefs.ErrDataLoss) {
			t.Errorf("ReadAll of %s bytes: %v", name, err)
		}
	}
}

// lying opens other bytes, of which it says that they are 5.
type lying struct {
	content.Store
	bytes string
}

func (l lying) Open(context.Context, digest.Digest) (content.Reader, error) {
	return lyingReader{strings.NewReader(l.bytes)}, nil
}

type lyingReader struct{ *strings.Reader }

func (r lyingReader) Size() int64 { return 5 }

func (r lyingReader) Close() error { return nil }
