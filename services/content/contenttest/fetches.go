package contenttest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// An opened is what became of a Writer.
type opened struct {
	w   content.Writer
	err error
}

// open asks for writers of b in the background, each of a ref of its own, and
// returns where they arrive.
func open(t *testing.T, sub *subject, b []byte, scopes ...namespace.Scope) <-chan opened {
	t.Helper()
	arrived := make(chan opened, len(scopes))
	for i, scope := range scopes {
		go func() {
			o := content.WriterOptions{Ref: fmt.Sprintf("w%d", i), Total: int64(len(b)), Expected: digest.FromBytes(b)}
			w, err := sub.Stores.In(scope).Writer(t.Context(), o)
			arrived <- opened{w, err}
		}()
	}
	return arrived
}

func waitForTheFirst(t *testing.T, sub *subject) {
	b := body(50, 300_000)
	d := digest.FromBytes(b)
	s := sub.Stores.In(one)
	first := writer(t, s, content.WriterOptions{Ref: "first", Total: int64(len(b)), Expected: d})
	arrived := open(t, sub, b, one, two, one, two)
	for i := 0; i < len(b); i += 100_000 {
		write(t, first, b[i:i+100_000])
		if len(arrived) > 0 {
			t.Fatal("a second writer does not wait")
		}
	}
	if err := first.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	for range 4 {
		a := <-arrived
		if errors.Is(a.err, errdefs.ErrAlreadyExists) {
			continue
		}
		if a.err != nil {
			t.Errorf("a writer that waited: %v", a.err)
			continue
		}
		// Of the other namespace, or one that had looked before the commit.
		wantOffset(t, a.w, int64(len(b)))
		if err := a.w.Commit(t.Context(), 0, d, nil); err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("Commit: %v", err)
		}
	}
	for _, scope := range []namespace.Scope{one, two} {
		wantBytes(t, sub.Stores.In(scope), d, b)
		if all, err := sub.Stores.In(scope).ListStatuses(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("ListStatuses in %s: %v, %v; want none", scope.Name, all, err)
		}
	}
}

func oneGoesOn(t *testing.T, sub *subject) {
	b := body(51, 1000)
	s := sub.Stores.In(one)
	first := writer(t, s, content.WriterOptions{Ref: "first", Total: 1000, Expected: digest.FromBytes(b)})
	write(t, first, b[:500])
	arrived := open(t, sub, b, one, one, one, one)
	for left := 3; ; left-- {
		closeWriter(t, first)
		a := <-arrived
		if a.err != nil {
			t.Fatalf("the next writer: %v", a.err)
		}
		wantOffset(t, a.w, 0)
		write(t, a.w, b[:1])
		if len(arrived) > 0 {
			t.Error("more than one writer goes on")
		}
		if first = a.w; left == 0 {
			break
		}
	}
	write(t, first, b[1:])
	if err := first.Commit(t.Context(), 1000, "", nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
}

func waitingHoldsTheRef(t *testing.T, sub *subject) {
	b := body(52, 1000)
	d := digest.FromBytes(b)
	s := sub.Stores.In(one)
	left := writer(t, s, content.WriterOptions{Ref: "second", Expected: d})
	write(t, left, b[:10])
	closeWriter(t, left)
	first := writer(t, s, content.WriterOptions{Ref: "first", Expected: d})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Writer(ctx, content.WriterOptions{Ref: "second", Expected: d})
		done <- err
	}()
	// Once it waits, the ref is held, and what was left there is untouched.
	for held := false; !held; {
		w, err := s.Writer(t.Context(), content.WriterOptions{Ref: "second"})
		if held = errors.Is(err, errdefs.ErrUnavailable); held {
			break
		}
		if err != nil {
			t.Fatalf("Writer: %v", err)
		}
		closeWriter(t, w)
		select {
		case err := <-done:
			// It came while the ref was held here.
			wantKind(t, "Writer of a held ref", err, errdefs.ErrUnavailable)
			go func() {
				_, err := s.Writer(ctx, content.WriterOptions{Ref: "second", Expected: d})
				done <- err
			}()
		default:
		}
	}
	if st, err := s.Status(t.Context(), "second"); err != nil || st.Offset != 10 {
		t.Errorf("Status: %+v, %v", st, err)
	}
	cancel()
	wantKind(t, "Writer of a caller that gave up", <-done, context.Canceled)
	w, err := content.Wait(t.Context(), s, content.WriterOptions{Ref: "second"})
	if err != nil {
		t.Fatalf("Writer: %v", err)
	}
	wantOffset(t, w, 10)
	closeWriter(t, w)
	closeWriter(t, first)
}

func anotherTotalWaitsForNobody(t *testing.T, sub *subject) {
	d := digest.FromString("wanted")
	s := sub.Stores.In(one)
	first := writer(t, s, content.WriterOptions{Ref: "first", Total: 1000, Expected: d})
	for i, o := range []content.WriterOptions{
		{Ref: "total", Total: 999, Expected: d},
		{Ref: "digest", Total: 1000, Expected: digest.FromString("another")},
		{Ref: "nothing"},
	} {
		w := writer(t, s, o)
		wantOffset(t, w, 0)
		write(t, w, make([]byte, i))
		closeWriter(t, w)
	}
	closeWriter(t, first)
}
