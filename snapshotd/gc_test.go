package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gcrpc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/snapshot"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOwner(t *testing.T) { gctest.Run(t, openOwner) }

func TestOwnerAcrossTheWire(t *testing.T) {
	gctest.Run(t, func(t *testing.T) gctest.Subject { return ownerAcross(t, openOwner(t)) })
}

func ownerAcross(t *testing.T, s gctest.Subject) gctest.Subject {
	s.Owner = gcrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { gcrpc.Register(r, s.Owner) }))
	restart := s.Restart
	s.Restart = func() gctest.Subject { return ownerAcross(t, restart()) }
	return s
}

func openOwner(t *testing.T) gctest.Subject { return ownerAt(t, testConfig(t)) }

func ownerAt(t *testing.T, cfg Config) gctest.Subject {
	t.Helper()
	s := openTest(t, cfg, quietNeeds(t))
	return gctest.Subject{Owner: s, Driver: gcClient{s, Overlayfs}, Restart: func() gctest.Subject {
		must(t, s.Close())
		return ownerAt(t, cfg)
	}}
}

// A gcClient makes active snapshots and refers to them.
type gcClient struct {
	s  *Store
	of string // the snapshotter
}

func (c gcClient) in(ns string) (snapshot.Store, error) {
	return c.s.In(namespace.Scope{Name: ns}, c.of)
}

func (c gcClient) Node(ns string, i int) gc.Node {
	return shelf{c.of, ns}.node(fmt.Sprint("object ", i))
}

func (c gcClient) Make(ctx context.Context, ns string, i int, labels map[string]string) (gc.Node, error) {
	n := c.Node(ns, i)
	sn, err := c.in(ns)
	if err != nil {
		return n, err
	}
	if _, err = sn.Prepare(ctx, n.ID, "", snapshot.Options{Labels: labels}); errors.Is(err, errdefs.ErrAlreadyExists) {
		return n, nil
	}
	return n, err
}

// Touch fails to make what exists, by the label that names it.
func (c gcClient) Touch(ctx context.Context, n gc.Node) error {
	sn, err := c.in(n.Namespace)
	if err != nil {
		return err
	}
	const key = "touch"
	_, err = sn.View(ctx, key, "", snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: n.ID}})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%v: %w", n, errdefs.ErrNotFound)
		return errors.Join(err, sn.Remove(ctx, key))
	}
	return err
}

func (c gcClient) Label(ctx context.Context, n gc.Node, labels map[string]string) error {
	sn, err := c.in(n.Namespace)
	if err != nil {
		return err
	}
	_, err = sn.Update(ctx, snapshot.Info{Name: n.ID, Labels: labels})
	return err
}

func (c gcClient) Join(ctx context.Context, n gc.Node, l lease.Ref) error {
	return c.s.AddMember(ctx, n.Namespace, l, n.Resource)
}

func (c gcClient) Remove(ctx context.Context, n gc.Node) error {
	sn, err := c.in(n.Namespace)
	if err != nil {
		return err
	}
	return sn.Remove(ctx, n.ID)
}

func (c gcClient) Has(ctx context.Context, n gc.Node) (bool, error) {
	sn, err := c.in(n.Namespace)
	if err != nil {
		return false, err
	}
	_, err = sn.Stat(ctx, n.ID)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// collectAll runs a cycle in which the leases live, and empties the trash.
func collectAll(t *testing.T, s *Store, c *gctest.Coordinator, live ...lease.Ref) int {
	t.Helper()
	c.Owners, c.Now = []gc.Owner{s}, gc.Now
	c.Leases = func() map[string][]lease.Ref { return map[string][]lease.Ref{"one": live} }
	n, err := c.Cycle(t.Context())
	must(t, err)
	must(t, s.empty(t.Context()))
	return n
}

// chainOf makes committed snapshots, each on the one before, and an active one
// on them.
func chainOf(t *testing.T, sn snapshots, prefix string, count int) (names []string) {
	t.Helper()
	parent := ""
	for i := range count {
		name := fmt.Sprint(prefix, i)
		prepare(t, sn, name+" key", parent)
		commitTo(t, sn, name, name+" key", "")
		names, parent = append(names, name), name
	}
	prepare(t, sn, prefix+"active", parent)
	return append(names, prefix+"active")
}

// TestGarbageGoes: what a lease keeps keeps its parents; of the rest nothing
// stays, no file, no row, and each is told of.
func TestGarbageGoes(t *testing.T) {
	bus := &heard{}
	needs := quietNeeds(t)
	needs.Events = bus
	s, c := openTest(t, testConfig(t), needs), &gctest.Coordinator{}
	sn, l := in(t, s, one), lease.Ref{ID: "l", Generation: 1}
	kept, dead := chainOf(t, sn, "kept", 3), chainOf(t, sn, "dead", 3)
	if _, err := sn.View(t.Context(), "view", "kept1", snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	must(t, s.AddMember(t.Context(), "one", l, sn.node("kept2").Resource))
	must(t, s.AddMember(t.Context(), "one", lease.Ref{ID: "old", Generation: 1}, sn.node("dead1").Resource))
	if n := collectAll(t, s, c, l); n != len(dead)+2 {
		t.Errorf("removed %d, want %d", n, len(dead)+2)
	}
	var names []string
	for i, err := range sn.List(t.Context()) {
		must(t, err)
		names = append(names, i.Name)
	}
	if !slices.Equal(names, kept[:3]) {
		t.Errorf("left are %q, want %q", names, kept[:3])
	}
	if got := dirs(t, s); len(got) != 3 {
		t.Errorf("directories %q", got)
	}
	// Nothing is left that would keep the parent of what was swept.
	must(t, s.DropMembers(t.Context(), "one", l))
	for _, name := range []string{"kept2", "kept1", "kept0"} {
		must(t, sn.Remove(t.Context(), name))
	}
	must(t, s.empty(t.Context()))
	must(t, s.db.View(func(tx *kv.Tx) error {
		for _, family := range []string{"snapshot", "child", "dir", "trash", "member", "leased"} {
			for key := range tx.Scan(kv.Key(family, ""), nil) {
				t.Errorf("row %q stays", kv.Parts(key))
			}
		}
		return nil
	}))
	removed := 0
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Publish(ctx) }()
	waitFor(t, "the events of what was removed", func() bool {
		removed = 0
		for _, e := range bus.all() {
			if slices.Contains([]string{
				`one /snapshot/remove {"key":"deadactive","snapshotter":"overlayfs"}`,
				`one /snapshot/remove {"key":"dead0","snapshotter":"overlayfs"}`,
				`one /snapshot/remove {"key":"view","snapshotter":"overlayfs"}`,
				`one /snapshot/remove {"key":"keptactive","snapshotter":"overlayfs"}`,
			}, e) {
				removed++
			}
		}
		return removed == 4
	})
	stop()
	must(t, <-ended)
}

// TestASweepKeepsParents: whatever the collector knows, a snapshot with a child
// stays, and a row that lies about one keeps nothing.
func TestASweepKeepsParents(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	names := chainOf(t, sn, "", 3)
	must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put(sn.childKey(names[3], "nobody"), nil) }))
	must(t, s.Begin(t.Context(), 1))
	for _, err := range s.Freeze(t.Context(), 1, gc.Now().Add(gc.HoldMax)) {
		must(t, err)
	}
	for _, dead := range []struct {
		name string
		want int
	}{{names[0], 0}, {names[2], 0}, {names[3], 1}, {names[2], 1}} {
		if n, err := s.Sweep(t.Context(), 1, []gc.Node{sn.node(dead.name)}); n != dead.want || err != nil {
			t.Errorf("Sweep of %s: %d, %v, want %d", dead.name, n, err, dead.want)
		}
	}
	must(t, s.End(t.Context(), 1))
}

// TestARecordThatIsDamagedStopsTheCycle: nobody knows what it refers to.
func TestARecordThatIsDamagedStopsTheCycle(t *testing.T) {
	s, c := openTest(t, testConfig(t), quietNeeds(t)), &gctest.Coordinator{Now: gc.Now}
	c.Owners = []gc.Owner{s}
	sn := in(t, s, one)
	prepare(t, sn, "key", "")
	prepare(t, sn, "other", "")
	must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put(sn.recordKey("key"), []byte("{")) }))
	if _, err := c.Cycle(t.Context()); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("Cycle: %v", err)
	}
	if _, err := sn.Stat(t.Context(), "other"); err != nil {
		t.Errorf("Stat: %v", err)
	}
}

// TestSweepTakesWhatIsLarge: more leases than one transaction can take it from.
func TestSweepTakesWhatIsLarge(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	long := fmt.Sprintf("%01000d", 7)
	prepare(t, sn, "key", "")
	for g := range uint64(300) {
		must(t, s.AddMember(t.Context(), "one", lease.Ref{ID: long, Generation: g + 1}, sn.node("key").Resource))
	}
	if n := collectAll(t, s, &gctest.Coordinator{}); n != 1 {
		t.Errorf("removed %d, want 1", n)
	}
	if left, err := s.ListMembers(t.Context(), "one", lease.Ref{ID: long, Generation: 7}); err != nil || len(left) > 0 {
		t.Errorf("members stay: %v, %v", left, err)
	}
}

// TestOpenCompletesMembers: half of a membership is one.
func TestOpenCompletesMembers(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	s, err := Open(cfg, quietNeeds(t))
	must(t, err)
	sn := in(t, s, one)
	prepare(t, sn, "a", "")
	prepare(t, sn, "b", "")
	l := lease.Ref{ID: "l", Generation: 1}
	for i, name := range []string{"a", "b"} {
		m := membership{"one", l, sn.node(name).Resource}
		must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put(m.keys()[i], nil) }))
	}
	must(t, s.Close())
	s = openTest(t, cfg, quietNeeds(t))
	if n := collectAll(t, s, &gctest.Coordinator{}, l); n != 0 {
		t.Errorf("removed %d that the lease has", n)
	}
	if all, err := s.ListMembers(t.Context(), "one", l); err != nil || len(all) != 2 {
		t.Errorf("the lease has %v, %v", all, err)
	}
}
