package unpacktest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

func senseless(t *testing.T, s suite) {
	good := s.image(t)
	with := func(change func(*unpack.Layer)) []unpack.Layer {
		layers := slices.Clone(good)
		change(&layers[1])
		return layers
	}
	for what, layers := range map[string][]unpack.Layer{
		"none":            nil,
		"too many":        make([]unpack.Layer, unpack.LayersMax+1),
		"no digest":       with(func(l *unpack.Layer) { l.Digest = "" }),
		"a digest of ../": with(func(l *unpack.Layer) { l.Digest = "sha256:../../etc" }),
		"no diff id":      with(func(l *unpack.Layer) { l.DiffID = "" }),
		"a size below 0":  with(func(l *unpack.Layer) { l.Size = -1 }),
		"a long label":    with(func(l *unpack.Layer) { l.Labels = map[string]string{"l": string(make([]byte, 5000))} }),
		"half a mapping":  with(func(l *unpack.Layer) { l.Labels = map[string]string{snapshot.LabelUIDMapping: "0:1000:1"} }),
	} {
		_, err := s.unpack(t.Context(), t, one, layers)
		wantKind(t, "Unpack of "+what, err, errdefs.ErrInvalidArgument)
	}
	s.wantSnapshots(t)
}

func missing(t *testing.T, s suite) {
	layers := s.image(t)
	_, err := s.unpack(t.Context(), t, two, layers)
	wantKind(t, "Unpack in another namespace", err, errdefs.ErrNotFound)
	layers[0] = packed(difftest.Tar(difftest.File("nobody", "has it")))
	_, err = s.unpack(t.Context(), t, one, layers)
	wantKind(t, "Unpack", err, errdefs.ErrNotFound)
	s.wantSnapshots(t)
}

func lying(t *testing.T, s suite) {
	layers := s.image(t)
	layers[0].Size++
	_, err := s.unpack(t.Context(), t, one, layers)
	layers[0].Size--
	wantKind(t, "Unpack of another size", err, errdefs.ErrInvalidArgument)
	broken := difftest.Gzip(archives()[0])
	broken = broken[:len(broken)/2]
	l := layers[0]
	l.Digest, l.Size = digest.FromBytes(broken), int64(len(broken))
	s.put(t, l.Digest, broken)
	_, err = s.unpack(t.Context(), t, one, []unpack.Layer{l})
	wantKind(t, "Unpack of half a layer", err, errdefs.ErrInvalidArgument)
	s.wantSnapshots(t)
}

func unlike(t *testing.T, s suite) {
	layers := s.image(t)
	layers[1].DiffID = digest.FromString("another")
	_, err := s.unpack(t.Context(), t, one, layers)
	wantKind(t, "Unpack", err, errdefs.ErrFailedPrecondition)
	bad := names(t, layers)
	for i := range s.snapshots(t, one).List(t.Context()) {
		if i.Name != bad[0] {
			t.Errorf("there is a snapshot %s", i.Name)
		}
	}
}

func unknown(t *testing.T, s suite) {
	layers := s.image(t)[:1]
	layers[0].MediaType = "application/x-unknown"
	_, err := s.unpack(t.Context(), t, one, layers)
	wantKind(t, "Unpack", err, errdefs.ErrNotImplemented)
	s.wantSnapshots(t)
}

// begin begins the ingest of a layer.
func (s suite) begin(t *testing.T, l unpack.Layer, b []byte) content.Writer {
	t.Helper()
	w, err := s.blobs.In(one).Writer(t.Context(), content.WriterOptions{Ref: l.Ingest, Expected: l.Digest, Total: l.Size})
	if err == nil {
		_, err = w.Write(b)
	}
	if err != nil {
		t.Fatalf("ingest %s: %v", l.Ingest, err)
	}
	return w
}

// arriving brings the bytes piece by piece, the second layer's first.
func arriving(t *testing.T, s suite) {
	layers := s.image(t)
	more := archives()[:1]
	more = append(more, difftest.Tar(difftest.File("etc/late", "x")), difftest.Tar(difftest.File("etc/later", "y")))
	for i, a := range more[1:] {
		l := packed(a)
		l.Ingest = []string{"late", "later"}[i]
		layers = append(layers, l)
	}
	var begin sync.Once
	var bring sync.WaitGroup
	told, err := func() ([]unpack.Progress, error) {
		var told []unpack.Progress
		err := unpack.Wait(s.in(t, one).Unpack(t.Context(), layers), func(p unpack.Progress) {
			told = append(told, p)
			begin.Do(func() { bring.Go(func() { s.bring(t, layers[3:], more[1:]) }) })
		})
		return told, err
	}()
	bring.Wait()
	if err != nil {
		t.Fatalf("Unpack: %v", err)
	}
	wantOver(t, told, layers, unpack.Committed)
	s.wantSnapshots(t, names(t, layers)...)
}

// bring writes layers from the last on, byte by byte.
func (s suite) bring(t *testing.T, layers []unpack.Layer, archives [][]byte) {
	for i, l := range slices.Backward(layers) {
		b := difftest.Gzip(archives[i])
		w := s.begin(t, l, nil)
		for part := range slices.Chunk(b, 7) {
			if _, err := w.Write(part); err != nil {
				t.Errorf("Write: %v", err)
			}
		}
		if err := w.Commit(t.Context(), 0, l.Digest, nil); err != nil {
			t.Errorf("Commit: %v", err)
		}
		w.Close()
	}
}

// aborted aborts an ingest that the service has seen.
func aborted(t *testing.T, s suite) {
	archive := difftest.Tar(difftest.File("never", "there"))
	l := packed(archive)
	l.Ingest = "short-lived"
	w := s.begin(t, l, difftest.Gzip(archive)[:10])
	var wg sync.WaitGroup
	wg.Go(func() {
		<-s.seen
		w.Close()
		if err := s.blobs.In(one).Abort(t.Context(), l.Ingest); err != nil {
			t.Errorf("Abort: %v", err)
		}
	})
	_, err := s.unpack(t.Context(), t, one, []unpack.Layer{l})
	wg.Wait()
	wantKind(t, "Unpack", err, errdefs.ErrNotFound)
	s.wantSnapshots(t)
}

// watchedStores tell when somebody was told of an ingest.
type watchedStores struct {
	content.Stores
	once *sync.Once
	seen chan struct{}
}

func (w watchedStores) In(scope namespace.Scope) content.Store {
	return watchedStore{w.Stores.In(scope), w}
}

type watchedStore struct {
	content.Store
	watched watchedStores
}

func (w watchedStore) Status(ctx context.Context, ref string) (content.Status, error) {
	st, err := w.Store.Status(ctx, ref)
	if err == nil {
		w.watched.once.Do(func() { close(w.watched.seen) })
	}
	return st, err
}

func many(t *testing.T, s suite) {
	layers := s.image(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			part := layers[:1+i%len(layers)]
			if _, err := s.unpack(t.Context(), t, one, part); err != nil {
				t.Errorf("Unpack: %v", err)
			}
		})
	}
	wg.Wait()
	s.wantSnapshots(t, names(t, layers)...)
}

func brokenOff(t *testing.T, s suite) {
	l := packed(difftest.Tar(difftest.File("never", "there")))
	l.Ingest = "never"
	layers := append(s.image(t), l)
	for range s.in(t, one).Unpack(t.Context(), layers) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := unpack.Wait(s.in(t, one).Unpack(ctx, layers), func(unpack.Progress) { cancel() })
	wantKind(t, "Unpack that was cancelled", err, context.Canceled)
	s.settle(t, names(t, layers[:3]))
}

// settle waits until there are no snapshots but those that may be: the other end
// of a wire may notice later that a caller has gone.
func (s suite) settle(t *testing.T, may []string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		left := ""
		for i, err := range s.snapshots(t, one).List(t.Context()) {
			if err != nil {
				t.Fatalf("List: %v", err)
			}
			if !slices.Contains(may, i.Name) {
				left = i.Name
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("snapshot %s is left", left)
		}
	}
}

func ended(t *testing.T, s suite) {
	layers := s.image(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.unpack(ctx, t, one, layers)
	wantKind(t, "Unpack", err, context.Canceled)
	s.wantSnapshots(t)
}
