package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/mounter"
)

// TestNothingThatIsReferredToGoes simulates the collector beside clients who
// prepare, commit, unpack and activate, and the loss of power meanwhile.
func TestNothingThatIsReferredToGoes(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		few := 3
		if snapshotter == Overlayfs {
			few = 10
		}
		gctest.Simulate(t, os.Getenv, few, func(w *gctest.World) gctest.Site { return openSimulated(w, snapshotter) })
	})
}

// TestNothingThatOthersHaveGoes is the same where another process has the trees,
// and calls to it are lost too.
func TestNothingThatOthersHaveGoes(t *testing.T) {
	needRoot(t)
	gctest.Simulate(t, os.Getenv, 4, func(w *gctest.World) gctest.Site { return openSimulated(w, theirs) })
}

// Which number has what. A snapshot's parent has a greater one.
var (
	simActivations = []int{0, 8}
	simActive      = []int{4, 6, 12}
	simCommitted   = []int{2, 10, 14}
	simImage       = []int{14, 10} // what its layers become, the lowest first
)

// A simulated is snapshotd in a simulation.
type simulated struct {
	gcClient
	*gctest.World
	cfg    Config
	needs  Needs
	power  *powerDisk
	layers []unpack.Layer
	chain  []string // the names that its layers get
	below  string   // a directory to be mounted

	process *process // that has the trees, or nil
	losing  bool     // calls to it
	lost    int      // the last of them

	views map[int]bool   // of the active ones
	texts map[int]string // what is in the committed ones
	count int
	alone bool // clients have no lease
}

func openSimulated(w *gctest.World, snapshotter string) gctest.Site {
	s := &simulated{World: w, cfg: testConfig(w.T), needs: quietNeeds(w.T), views: map[int]bool{}, texts: map[int]string{}}
	s.of = snapshotter
	inMemory(w.T, filepath.Dir(s.cfg.Root))
	w.Cleanup(func() {
		for _, p := range slices.Backward(mountedBelow(w.T, s.cfg.State)) {
			unix.Unmount(p, unix.MNT_DETACH)
		}
	})
	place(w.T, s.cfg, snapshotter)
	if snapshotter == theirs {
		s.process = withTheirs(w.T, &s.cfg, &s.needs)
		s.process.wrong = s.wrong
	}
	blobs := difftest.NewBlobs()
	s.needs.Leases, s.needs.Content = w, blobs
	for _, k := range simImage {
		archive := difftest.Tar(difftest.File(unsyncedName, layerText(k)))
		d := digest.FromBytes(archive)
		blobs.Put(one.Name, d, archive)
		s.layers = append(s.layers, unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}, DiffID: d,
		})
	}
	var err error
	s.chain, err = unpack.Names(s.layers)
	w.Must("Names", err)
	s.power = newPowerDisk(math.MaxInt)
	s.start()
	w.Cleanup(func() { w.Must("Close", s.s.Close()) })
	sn := inOf(w.T, s.s, one, Overlayfs)
	m, err := sn.Prepare(w.Context(), "base", "", snapshot.Options{})
	w.Must("Prepare", err)
	s.below = m[0].Source
	w.Must("Commit", sn.Commit(w.Context(), "the base", "base", snapshot.Options{Labels: map[string]string{gc.LabelRoot: "x"}}))
	return s
}

func layerText(k int) string { return fmt.Sprint("layer ", k) }

func (w *simulated) in(scope namespace.Scope) snapshot.Store {
	sn, err := w.s.In(scope, w.of)
	w.Must("In", err)
	return sn
}

// wrong loses calls to another process, before or after they are heard, but never
// so many that nobody would call it any more.
func (w *simulated) wrong(context.Context, string, string) error {
	if !w.losing || w.lost == 2 || w.Rand.IntN(6) > 0 {
		w.lost = 0
		return nil
	}
	w.lost++
	return fmt.Errorf("the call was lost: %w", errdefs.ErrUnavailable)
}

func (w *simulated) start() {
	s, err := openAt(w.cfg, w.needs, w.power, kernel.New(), w.Clock)
	w.Must("open", err)
	w.s = s
}

// Owner implements gctest.Site.
func (w *simulated) Owner() gc.Owner { return w.s }

// Crash implements gctest.Site: what was not synced may be lost.
func (w *simulated) Crash() {
	w.Must("Close", w.s.Close())
	if w.process == nil {
		w.power.forget(w.T, w.s.rootOf(w.of), w.Rand.IntN(2) == 0)
	}
	w.power = newPowerDisk(math.MaxInt)
	w.Must("walk", filepath.WalkDir(w.cfg.Root, func(path string, _ fs.DirEntry, err error) error {
		w.power.durable[path] = true
		return err
	}))
	w.start()
}

// Node implements gctest.Driver.
func (w *simulated) Node(ns string, k int) gc.Node {
	if slices.Contains(simActivations, k) {
		return gc.Node{Namespace: ns, Resource: mounter.Resource(fmt.Sprint("activation ", k))}
	}
	if i := slices.Index(simImage, k); i >= 0 {
		return shelf{w.of, ns}.node(w.chain[i])
	}
	return w.gcClient.Node(ns, k)
}

// Make implements gctest.Driver. It prepares, commits or activates.
func (w *simulated) Make(ctx context.Context, ns string, k int, labels map[string]string) (gc.Node, error) {
	n := w.Node(ns, k)
	scope := namespace.Scope{Name: ns}
	if n.Type == gc.TypeMounts {
		return n, w.activate(ctx, scope, n.ID, labels)
	}
	sn := w.in(scope)
	if slices.Contains(simActive, k) {
		m, err := sn.Prepare(ctx, n.ID, "", snapshot.Options{Labels: labels})
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			return n, nil
		}
		if err == nil {
			w.views[k] = false
			write(w.T, m, "as it was prepared")
		}
		return n, err
	}
	const key = "making"
	if err := sn.Remove(ctx, key); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return n, err
	}
	m, err := sn.Prepare(ctx, key, "", snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: n.ID}})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return n, nil
	}
	if err == nil {
		text := w.text()
		write(w.T, m, text)
		if err = sn.Commit(ctx, n.ID, key, snapshot.Options{Labels: labels}); err == nil {
			w.texts[k] = text
		}
	}
	return n, err
}

// text is none that was before.
func (w *simulated) text() string {
	w.count++
	return fmt.Sprint("text ", w.count)
}

// activate makes what exists be touched.
func (w *simulated) activate(ctx context.Context, scope namespace.Scope, name string, labels map[string]string) error {
	bind := mount.Mount{Type: "bind", Source: w.below, Options: []string{"ro", "rbind"}}
	_, err := w.s.Activations().In(scope).Activate(ctx, name, []mount.Mount{bind}, activation.Options{Temporary: true, Labels: labels})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil
	}
	return err
}

// Tell implements gctest.Site.
func (w *simulated) Tell(ctx context.Context, k int, scope namespace.Scope) error {
	n := w.Node("one", k)
	if n.Type == gc.TypeMounts {
		return w.activate(ctx, scope, n.ID, nil)
	}
	_, err := w.in(scope).View(ctx, "touch", "", snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: n.ID}})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil
	}
	if err == nil {
		return errors.New("it was made")
	}
	return err
}

// Label implements gctest.Driver.
func (w *simulated) Label(ctx context.Context, n gc.Node, labels map[string]string) error {
	if n.Type == gc.TypeMounts {
		return errdefs.ErrNotImplemented
	}
	err := w.gcClient.Label(ctx, n, labels)
	if w.process != nil && errors.Is(err, errdefs.ErrNotFound) {
		// It is committed there, and the answer to that was lost.
		return errdefs.ErrNotImplemented
	}
	return err
}

// Remove implements gctest.Driver.
func (w *simulated) Remove(ctx context.Context, n gc.Node) error {
	if n.Type == gc.TypeMounts {
		return w.s.Activations().In(one).Deactivate(ctx, n.ID)
	}
	return w.gcClient.Remove(ctx, n)
}

// Has implements gctest.Driver.
func (w *simulated) Has(ctx context.Context, n gc.Node) (bool, error) {
	if n.Type != gc.TypeMounts {
		return w.gcClient.Has(ctx, n)
	}
	_, err := w.s.Activations().In(one).Info(ctx, n.ID)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// DropMembers implements gctest.Site.
func (w *simulated) DropMembers(ctx context.Context, l lease.Ref) error {
	return w.s.DropMembers(ctx, "one", l)
}

// Moves implements gctest.Site.
func (w *simulated) Moves() []gctest.Move {
	return []gctest.Move{
		{Weight: 8, Do: func(ctx context.Context, held bool, _ int) { w.prepare(ctx, held) }},
		{Weight: 8, Do: func(ctx context.Context, held bool, _ int) { w.commit(ctx, held) }},
		{Weight: 3, Do: func(ctx context.Context, held bool, _ int) { w.unpack(ctx, held) }},
		{Weight: 3, Do: func(context.Context, bool, int) { w.empty() }},
		{Weight: 1, Do: func(_ context.Context, held bool, _ int) { w.powerFails(held) }},
	}
}

// Check implements gctest.Site.
func (w *simulated) Check() {}

// Quiet implements gctest.Site.
func (w *simulated) Quiet() {}

// End implements gctest.Site: what is committed has its files, what nobody has
// leaves none, and what nobody has activated is mounted nowhere.
func (w *simulated) End(needed map[int]bool) {
	for k := range needed {
		if w.process != nil || !slices.Contains(simCommitted, k) {
			continue
		}
		if got, err := written(w.T, inOf(w.T, w.s, one, w.of), w.Name(k).ID); got != w.texts[k] {
			w.Errorf("the file of %d is %q, %v, want %q", k, got, err, w.texts[k])
		}
	}
	w.endTheirs()
	wantTidy(w.T, w.s, "at the end")
	for item, err := range w.s.Check(w.Context(), fsck.Options{}) {
		w.Must("Check", err)
		if f := item.Finding; f != nil {
			w.Errorf("found %+v", *f)
		}
	}
	active := 0
	for _, k := range simActivations {
		if needed[k] {
			active++
		}
	}
	ctx, stop := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- w.s.Unmount(ctx) }()
	waitFor(w.T, "what was collected is unmounted", func() bool { return len(mountedBelow(w.T, w.cfg.State)) == active })
	stop()
	w.Must("Unmount", <-done)
}

// endTheirs wants another process to have what there are records of, and no more.
// What it was told to commit, in a call that was lost, it has by the new name.
func (w *simulated) endTheirs() {
	if w.process == nil {
		return
	}
	w.empty()
	there, err := w.process.Stores.In(one, Overlayfs)
	w.Must("In", err)
	have := map[string]bool{}
	for i, err := range there.List(w.Context()) {
		w.Must("List", err)
		have[path.Dir(i.Name)] = true // names have no slash here
	}
	h := shelf{w.of, one.Name}
	for i, err := range w.in(one).List(w.Context()) {
		w.Must("List", err)
		w.Must("View", w.s.db.View(func(tx *kv.Tx) error {
			r, err := h.get(tx, i.Name)
			key := path.Dir(h.ref(i.Name, r).Key)
			if !have[key] {
				w.Errorf("%s is not there, as %s", i.Name, key)
			}
			delete(have, key)
			return err
		}))
	}
	for key := range have {
		w.Errorf("they have %s, which is nobody's", key)
	}
}
