package snapshotd

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/activation/activationtest"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/mounter"
)

func needImages(t testing.TB) {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("needs erofs-utils: ", err)
	}
}

// makers makes snapshots for activations.
type makers struct {
	s    *Store
	last int
}

// place makes a snapshot and returns its directory.
func (m *makers) place(t testing.TB, ns string, committed bool) string {
	t.Helper()
	m.last++
	sn := in(t, m.s, namespace.Scope{Name: ns})
	key := strings.Repeat("x", m.last)
	dir := filepath.Dir(prepare(t, sn, key, "")[0].Source)
	if committed {
		must(t, sn.Commit(t.Context(), key+" done", key, snapshot.Options{}))
	}
	return dir
}

// image puts an image beside the tree of a snapshot, as a snapshotter of images
// does.
func (m *makers) image(t testing.TB, ns string) string {
	t.Helper()
	needImages(t)
	dir := m.place(t, ns, true)
	if out, err := exec.Command("mkfs.erofs", dir+"/layer.erofs", dir+"/fs").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	return dir + "/layer.erofs"
}

// mountedBelow are the places below dir where something is mounted, which ends
// with the test.
func mountedBelow(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var all []string
	for line := range strings.Lines(string(b)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			all = append(all, at)
		}
	}
	return all
}

func openActivations(t *testing.T, leases lease.Registry) (*Store, *makers) {
	t.Helper()
	needImages(t)
	cfg := testConfig(t)
	t.Cleanup(func() {
		for _, p := range slices.Backward(mountedBelow(t, cfg.State)) {
			unix.Unmount(p, unix.MNT_DETACH)
		}
	})
	needs := testNeeds(t)
	needs.Leases = leases
	s := openTest(t, cfg, needs)
	return s, &makers{s: s}
}

func TestActivationsAcrossTheWire(t *testing.T) {
	activationtest.Run(t, func(t *testing.T, leases lease.Registry) activationtest.Fixture {
		s, m := openActivations(t, leases)
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { activationrpc.Register(r, s.Activations()) })
		return activationtest.Fixture{
			Stores:    activationrpc.NewClient(conn),
			Image:     func(t *testing.T, ns string) string { return m.image(t, ns) },
			Active:    func(t *testing.T, ns string) string { return m.place(t, ns, false) },
			Committed: func(t *testing.T, ns string) string { return m.place(t, ns, true) },
		}
	})
}

// TestMountsOfEverySnapshotCanBeActivated asks for what Mounts, Prepare and View
// return, as clients do who look into an image.
func TestMountsOfEverySnapshotCanBeActivated(t *testing.T) {
	s, _ := openActivations(t, noLeases{})
	sn := in(t, s, one)
	var all [][]mount.Mount
	for _, parent := range []string{"", "1 done", "2 done", "3 done"} {
		view, err := sn.View(t.Context(), "view of "+parent, parent, snapshot.Options{})
		must(t, err)
		all = append(all, view, prepare(t, sn, "on "+parent, parent))
		if next := string(rune('1' + len(all)/2 - 1)); next < "4" {
			m := prepare(t, sn, next, parent)
			upper := m[0].Source
			for _, o := range m[0].Options {
				if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
					upper = dir
				}
			}
			must(t, os.WriteFile(filepath.Join(upper, next), nil, 0o644))
			must(t, sn.Commit(t.Context(), next+" done", next, snapshot.Options{}))
		}
	}
	a := s.Activations().In(one)
	for i, mounts := range all {
		if _, err := a.Activate(t.Context(), "n", mounts, activation.Options{}); !errors.Is(err, errdefs.ErrNotImplemented) {
			t.Errorf("Activate(%v) = %v, want not implemented", mounts, err)
		}
		info, err := a.Activate(t.Context(), "n", mounts, activation.Options{Temporary: true})
		if err != nil {
			t.Fatalf("Activate(%v): %v", mounts, err)
		}
		entries, err := os.ReadDir(info.System[0].Source)
		if err != nil || len(entries) != i/2 {
			t.Errorf("%v has %v, %v, want %d files", mounts, entries, err, i/2)
		}
		err = os.WriteFile(info.System[0].Source+"/x", nil, 0o644)
		if writes := i%2 == 1; writes != (err == nil) {
			t.Errorf("write to %v: %v", mounts, err)
		}
		os.Remove(info.System[0].Source + "/x")
		must(t, a.Deactivate(t.Context(), "n"))
	}
	if left := mountedBelow(t, s.cfg.State); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
}

// heldLease is a registry that knows every lease.
type heldLease struct{}

func (heldLease) Lookup(_ context.Context, scope namespace.Scope) (lease.Ref, error) {
	return lease.Ref{ID: scope.Lease, Generation: 1}, nil
}

// TestCollectorKeepsActivations has some that are kept by a lease, by a label and
// by what refers to them, and one that is not.
func TestCollectorKeepsActivations(t *testing.T) {
	s, m := openActivations(t, heldLease{})
	held := lease.Ref{ID: "held", Generation: 1}
	sn := in(t, s, namespace.Scope{Name: "one", Lease: "held"})
	if _, err := sn.Prepare(t.Context(), "keeper", "", snapshot.Options{Labels: map[string]string{"containerd.io/gc.ref.mount": "referred"}}); err != nil {
		t.Fatal(err)
	}
	image := m.image(t, "one")
	for name, lease := range map[string]string{"leased": "held", "referred": "", "back": "", "root": "", "garbage": "", "ended": "gone"} {
		labels := map[string]string{}
		switch name {
		case "back":
			labels["containerd.io/gc.bref.snapshot.overlayfs"] = "keeper"
		case "root":
			labels["containerd.io/gc.root"] = "yes"
		case "garbage":
			labels["containerd.io/gc.bref.container"] = "gone"
		}
		a := s.Activations().In(namespace.Scope{Name: "one", Lease: lease})
		_, err := a.Activate(t.Context(), name, []mount.Mount{{Type: "erofs", Source: image, Options: []string{"ro"}}}, activation.Options{Labels: labels})
		must(t, err)
	}
	if all, err := s.ListMembers(t.Context(), "one", held); err != nil || len(all) != 1 {
		t.Errorf("ListMembers = %v, %v, want the snapshot alone", all, err)
	}
	coordinator := new(gctest.Coordinator)
	collectAll(t, s, coordinator, held)
	var left []string
	for i, err := range s.Activations().In(one).List(t.Context()) {
		must(t, err)
		left = append(left, i.Name)
	}
	if want := []string{"back", "leased", "referred", "root"}; !slices.Equal(left, want) {
		t.Errorf("%q are left, want %q", left, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Unmount(ctx) }()
	waitFor(t, "what was collected is unmounted", func() bool { return len(mountedBelow(t, s.cfg.State)) == len(left) })
	cancel()
	must(t, <-done)
	// What the lease has goes with it.
	must(t, s.DropMembers(t.Context(), "one", held))
	if n := collectAll(t, s, coordinator); n == 0 {
		t.Error("nothing was collected without the lease")
	}
	if _, err := s.Activations().In(one).Info(t.Context(), "leased"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Info of an activation whose lease is gone = %v, want not found", err)
	}
}

// TestNobodyFindsWhatIsSwept: who is told of an activation while it is swept, past
// the deadline perhaps, would refer to what is gone.
func TestNobodyFindsWhatIsSwept(t *testing.T) {
	s, m := openActivations(t, noLeases{})
	a := s.Activations().In(one)
	image := mount.Mount{Type: "erofs", Source: m.image(t, "one"), Options: []string{"ro"}}
	for _, name := range []string{"dead", "kept"} {
		_, err := a.Activate(t.Context(), name, []mount.Mount{image}, activation.Options{})
		must(t, err)
	}
	must(t, s.Begin(t.Context(), 1))
	for _, err := range s.Freeze(t.Context(), 1, gc.Now().Add(gc.HoldMax)) {
		must(t, err)
	}
	dead := []gc.Node{{Namespace: "one", Resource: mounter.Resource("dead")}}
	_, err := s.gate.Sweep(t.Context(), 1, dead, func(ctx context.Context, dead []gc.Node) (done, removed int, err error) {
		if _, err := a.Info(ctx, "dead"); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Info of what is swept = %v, want not found", err)
		}
		for i, err := range a.List(ctx) {
			if err != nil || i.Name != "kept" {
				t.Errorf("List while there is a sweep: %q, %v", i.Name, err)
			}
		}
		return s.sweepDead(ctx, dead)
	})
	must(t, err)
	must(t, s.End(t.Context(), 1))
	must(t, a.Deactivate(t.Context(), "kept"))
}

// TestNobodyWritesBesideTheTree asks for the directory in which the images of a
// snapshot are.
func TestNobodyWritesBesideTheTree(t *testing.T) {
	s := openTest(t, testConfig(t), testNeeds(t))
	dir := (&makers{s: s}).place(t, "one", false)
	for path, want := range map[string]bool{dir: false, dir + "/fs": true, dir + "/new.img": true} {
		p, err := places{s}.Place("one", path)
		must(t, err)
		must(t, p.Dir.Close())
		if p.Write != want {
			t.Errorf("%s can be written: %t, want %t", path, p.Write, want)
		}
	}
	// What a snapshotter makes images of itself, nobody else does.
	dir = filepath.Dir(prepare(t, inOf(t, s, one, "erofs"), "images", "")[0].Source)
	for name, want := range map[string]bool{"layer.erofs": false, "layer.erofs.new": false, "rw.img": true} {
		p, err := places{s}.Place("one", dir+"/"+name)
		must(t, err)
		must(t, p.Dir.Close())
		if p.Write != want {
			t.Errorf("%s can be written: %t, want %t", name, p.Write, want)
		}
	}
}
