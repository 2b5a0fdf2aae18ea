package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// TestNothingThatIsReferredToGoes simulates the collector beside clients who
// write, leave and resume.
func TestNothingThatIsReferredToGoes(t *testing.T) {
	gctest.Simulate(t, os.Getenv, 15, openSite)
}

// A simulated is contentd in a simulation.
type simulated struct {
	gcClient
	*gctest.World
	cfg     Config
	writers map[int]*simWriter
	left    map[int]map[lease.Ref]bool // ingests that were left, and the leases they joined
}

type simWriter struct {
	content.Writer
	lease   lease.Ref   // when it was opened
	dropped []lease.Ref // since
}

func openSite(w *gctest.World) gctest.Site {
	s := &simulated{World: w, cfg: testConfig(w.T), writers: map[int]*simWriter{}, left: map[int]map[lease.Ref]bool{}}
	s.start()
	w.Cleanup(func() {
		closeStore(w.T, s.s)
		os.RemoveAll(s.cfg.Root)
	})
	return s
}

// start opens contentd, as a new process does.
func (w *simulated) start() {
	s, err := Open(w.cfg, Needs{Leases: w.World})
	w.Must("Open", err)
	s.gate = gc.NewGate(w.Clock)
	s.db.Gate = s.gate
	w.Must("Resume", s.db.Resume())
	w.s = s
}

// Owner implements gctest.Site.
func (w *simulated) Owner() gc.Owner { return w.s }

// Crash implements gctest.Site.
func (w *simulated) Crash() {
	w.Must("Close", w.s.kv.Close())
	for k, sw := range w.writers {
		sw.Writer.(*writer).closeFile()
		delete(w.writers, k)
	}
	w.start()
}

// Tell implements gctest.Site.
func (w *simulated) Tell(ctx context.Context, k int, scope namespace.Scope) error {
	opened, err := w.s.In(scope).Writer(ctx, content.WriterOptions{Ref: "touch", Expected: digest.Digest(w.Name(k).ID)})
	switch {
	case errors.Is(err, errdefs.ErrAlreadyExists):
		return nil
	case err == nil:
		return errors.Join(errors.New("it is to be written"), opened.Close())
	}
	return err
}

// DropMembers implements gctest.Site.
func (w *simulated) DropMembers(ctx context.Context, l lease.Ref) error {
	for _, sw := range w.writers {
		sw.dropped = append(sw.dropped, l)
	}
	return w.s.DropMembers(ctx, "one", l)
}

// Moves implements gctest.Site.
func (w *simulated) Moves() []gctest.Move {
	return []gctest.Move{
		{Weight: 4, Do: w.open},
		{Weight: 6, Do: func(_ context.Context, _ bool, k int) { w.finish(k) }},
		{Weight: 3, Do: func(context.Context, bool, int) { w.s.sweep(w.Context()) }},
	}
}

// open begins to write a blob, which it does not name.
func (w *simulated) open(ctx context.Context, held bool, k int) {
	if k%2 == 1 || w.writers[k] != nil {
		return
	}
	ref := content.WriterOptions{Ref: fmt.Sprintf("w%d", k)}
	if held && w.left[k] != nil {
		// What is resumed is an object.
		_, err := w.s.In(one).Writer(ctx, ref)
		w.Refused("Writer", err)
		return
	}
	scope := w.Scope()
	// It lives as long as the writer.
	opened, err := w.s.In(scope).Writer(w.Context(), ref)
	w.Say("open %d in lease %q: %v", k, scope.Lease, err)
	w.Must("Writer", err)
	w.writers[k] = &simWriter{Writer: opened, lease: w.Model.Live[scope.Lease]}
	if w.left[k] != nil && scope.Lease != "" {
		w.left[k][w.Model.Live[scope.Lease]] = true // also if there is a crash now
	}
}

// finish ends a writer: it commits, or leaves an ingest.
func (w *simulated) finish(k int) {
	sw := w.writers[k]
	if sw == nil || w.Held() {
		return
	}
	delete(w.writers, k)
	b, ref := bytesOf("one", k), fmt.Sprintf("w%d", k)
	st, err := sw.Status(w.Context())
	w.Must("Status", err)
	if w.Rand.IntN(2) == 0 {
		_, err := sw.Write(b[st.Offset:min(int(st.Offset)+2, len(b))])
		w.Must("Write", err)
		w.Must("Close", sw.Close())
		w.Say("leave %d in lease %v", k, sw.lease)
		if w.left[k] == nil {
			w.left[k] = map[lease.Ref]bool{}
		}
		if sw.lease.ID != "" {
			w.left[k][sw.lease] = true
		}
		for _, l := range sw.dropped {
			delete(w.left[k], l)
		}
		return
	}
	_, err = sw.Write(b[st.Offset:])
	w.Must("Write", err)
	o, labels := w.Pick(k)
	err = sw.Commit(w.Context(), int64(len(b)), "", labels)
	w.Say("commit %d in lease %v: %v", k, sw.lease, err)
	delete(w.left, k)
	l, alive := w.Model.Live[sw.lease.ID]
	if sw.lease.ID != "" && !alive && errors.Is(err, errdefs.ErrNotFound) {
		w.Must("Abort", w.s.In(one).Abort(w.Context(), ref))
		return
	}
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		w.Must("Commit", err)
	}
	w.Model.Made(k, o)
	if alive {
		w.Model.Joined(k, l)
	}
}

// Check implements gctest.Site: it wants every ingest that was left and is in no
// lease, or in one that lives.
func (w *simulated) Check() {
	for k, leases := range w.left {
		if w.writers[k] != nil {
			continue
		}
		_, err := w.s.In(one).Status(w.Context(), fmt.Sprintf("w%d", k))
		switch {
		case err == nil:
		case !errors.Is(err, errdefs.ErrNotFound):
			w.Must("Status", err)
		case len(leases) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(leases)), w.Model.Lives):
			w.Errorf("the ingest of %d is gone: it is in leases %v", k, leases)
		default:
			w.Say("the ingest of %d was collected", k)
			delete(w.left, k)
		}
	}
}

// Quiet implements gctest.Site.
func (w *simulated) Quiet() {
	for k, sw := range w.writers {
		w.Must("Close", sw.Close())
		w.Must("Abort", w.s.In(one).Abort(w.Context(), fmt.Sprintf("w%d", k)))
		delete(w.writers, k)
		delete(w.left, k)
	}
}

// End implements gctest.Site.
func (w *simulated) End(needed map[int]bool) {
	for k, leases := range w.left {
		if len(leases) > 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(leases)), w.Model.Lives) {
			w.Errorf("the ingest of %d stays, in leases %v", k, leases)
		}
	}
	w.s.sweep(w.Context())
	checkFiles(w.T, w.s, "at the end")
	for k := range needed {
		if k%2 == 0 {
			b, err := content.ReadAll(w.Context(), w.s.In(one), digest.Digest(w.Name(k).ID), 1<<20)
			if err != nil || !bytes.Equal(b, bytesOf("one", k)) {
				w.Errorf("%d: %d bytes, %v", k, len(b), err)
			}
		}
	}
}
