package snapshotd

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/unpack"
)

// A lateBlob is one that does something before it is opened.
type lateBlob struct {
	content.Stores
	late   digest.Digest
	before func()
}

func (b lateBlob) In(scope namespace.Scope) content.Store {
	return lateStore{b.Stores.In(scope), b}
}

type lateStore struct {
	content.Store
	of lateBlob
}

func (s lateStore) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	if d == s.of.late {
		s.of.before()
	}
	return s.Store.Open(ctx, d)
}

// TestWhatIsStoodOnIsRemoved while the layer above it is extracted: it can be tried
// again, and is not taken for a blob that is missing.
func TestWhatIsStoodOnIsRemoved(t *testing.T) {
	blobs, needs := difftest.NewBlobs(), quietNeeds(t)
	layers := layersOf(blobs)
	var s *Store
	remove := func() {
		if err := in(t, s, one).Remove(t.Context(), layers[0].DiffID.String()); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Remove: %v", err)
		}
	}
	needs.Content = lateBlob{blobs, layers[1].Digest, func() { remove() }}
	s = openTest(t, testConfig(t), needs)
	service, err := s.Unpacking().In(one, Overlayfs)
	must(t, err)
	must(t, unpack.Wait(service.Unpack(t.Context(), layers[:1]), nil))
	if err := unpack.Wait(service.Unpack(t.Context(), layers[:2]), nil); !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("Unpack = %v, want %v", err, errdefs.ErrAborted)
	}
	remove = func() {}
	must(t, unpack.Wait(service.Unpack(t.Context(), layers), nil))
	must(t, s.empty(t.Context()))
	wantTidy(t, s, "in the end")
}

// TestTooMuchToUnpackIsRefused until there is less.
func TestTooMuchToUnpackIsRefused(t *testing.T) {
	blobs, needs := difftest.NewBlobs(), quietNeeds(t)
	layers := layersOf(blobs)
	needs.Content = blobs
	s := openTest(t, testConfig(t), needs)
	service, err := s.Unpacking().In(one, Overlayfs)
	must(t, err)
	leave, err := s.crowd.enter(crowdMax - len(layers) + 1)
	must(t, err)
	if err := unpack.Wait(service.Unpack(t.Context(), layers), nil); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Unpack = %v, want %v", err, errdefs.ErrUnavailable)
	}
	leave()
	must(t, unpack.Wait(service.Unpack(t.Context(), layers), nil))
	if n := s.crowd.n.Load(); n != 0 {
		t.Errorf("%d layers are still counted", n)
	}
}

// TestATreeInVainIsTrashAtOnce, while the call that made it goes on: a layer that
// is extracted in its place has been extracted before.
func TestATreeInVainIsTrashAtOnce(t *testing.T) {
	blobs, needs := difftest.NewBlobs(), quietNeeds(t)
	layers := layersOf(blobs)
	var s *Store
	needs.Content = lateBlob{blobs, layers[2].Digest, func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.After(20 * time.Second); ; {
			if all, err := s.trashed(); err == nil && len(all) > 0 {
				return
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Error("the tree of the layer below is no trash")
				return
			}
		}
	}}
	s = openTest(t, testConfig(t), needs)
	service, err := s.Unpacking().In(one, Overlayfs)
	must(t, err)
	for _, err := range service.Unpack(t.Context(), layers) {
		must(t, err)
	}
	must(t, s.empty(t.Context()))
	wantTidy(t, s, "in the end")
}
