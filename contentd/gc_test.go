package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gcrpc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

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
	s, err := Open(cfg, Needs{})
	must(t, err)
	t.Cleanup(func() { closeStore(t, s) })
	return gctest.Subject{Owner: s, Driver: gcClient{s}, Restart: func() gctest.Subject {
		must(t, s.Close())
		return ownerAt(t, cfg)
	}}
}

// A gcClient makes blobs of the store and refers to them.
type gcClient struct{ s *Store }

func (c gcClient) in(ns string) content.Store { return c.s.In(namespace.Scope{Name: ns}) }

func bytesOf(ns string, i int) []byte { return fmt.Appendf(nil, "blob %d of %s", i, ns) }

func (c gcClient) Node(ns string, i int) gc.Node {
	return node(ns, lease.TypeContent, digest.FromBytes(bytesOf(ns, i)).String())
}

func (c gcClient) Make(ctx context.Context, ns string, i int, labels map[string]string) (gc.Node, error) {
	n, b := c.Node(ns, i), bytesOf(ns, i)
	o := content.WriterOptions{Ref: n.ID, Expected: digest.Digest(n.ID), Total: int64(len(b))}
	return n, content.Put(ctx, c.in(ns), o, bytes.NewReader(b), labels)
}

func (c gcClient) Touch(ctx context.Context, n gc.Node) error {
	w, err := c.in(n.Namespace).Writer(ctx, content.WriterOptions{Ref: "touch " + n.ID, Expected: digest.Digest(n.ID)})
	switch {
	case errors.Is(err, errdefs.ErrAlreadyExists):
		return nil
	case err != nil:
		return err
	}
	err = errors.Join(w.Close(), c.in(n.Namespace).Abort(ctx, "touch "+n.ID))
	return errors.Join(fmt.Errorf("%v: %w", n, errdefs.ErrNotFound), err)
}

func (c gcClient) Label(ctx context.Context, n gc.Node, labels map[string]string) error {
	_, err := c.in(n.Namespace).Update(ctx, content.Info{Digest: digest.Digest(n.ID), Labels: labels})
	return err
}

func (c gcClient) Join(ctx context.Context, n gc.Node, l lease.Ref) error {
	return c.s.AddMember(ctx, n.Namespace, l, n.Resource)
}

func (c gcClient) Remove(ctx context.Context, n gc.Node) error {
	return c.in(n.Namespace).Delete(ctx, digest.Digest(n.ID))
}

func (c gcClient) Has(ctx context.Context, n gc.Node) (bool, error) {
	_, err := c.in(n.Namespace).Info(ctx, digest.Digest(n.ID))
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// collectAll runs a cycle in which the leases live.
func collectAll(t *testing.T, s *Store, c *gctest.Coordinator, live ...lease.Ref) int {
	t.Helper()
	c.Owners, c.Now = []gc.Owner{s}, gc.Now
	c.Leases = func() map[string][]lease.Ref { return map[string][]lease.Ref{"one": live, "two": live} }
	n, err := c.Cycle(t.Context())
	must(t, err)
	s.sweep(t.Context())
	return n
}

// TestGarbageGoes has an image's tree in one namespace and the same bytes in
// another.
func TestGarbageGoes(t *testing.T) {
	s, c := openStore(t, testConfig(t), nil), &gctest.Coordinator{}
	l := lease.Ref{ID: "l", Generation: 1}
	layer, config := put(t, s, one, []byte("layer")), put(t, s, one, []byte("config"))
	manifest := put(t, s, one, []byte("manifest"))
	put(t, s, two, []byte("layer"))
	_, err := s.In(one).Update(t.Context(), content.Info{Digest: manifest, Labels: map[string]string{
		"containerd.io/gc.ref.content.l.0": layer.String(), "containerd.io/gc.ref.content.config": config.String(),
	}})
	must(t, err)
	must(t, s.AddMember(t.Context(), "one", l, contentOf(manifest)))
	must(t, s.AddMember(t.Context(), "one", lease.Ref{ID: "old", Generation: 1}, contentOf(layer)))
	must(t, s.AddMember(t.Context(), "two", l, contentOf(layer)))

	if n := collectAll(t, s, c, l); n != 0 {
		t.Errorf("removed %d that a lease keeps", n)
	}
	must(t, s.DropMembers(t.Context(), "one", l))
	if n := collectAll(t, s, c, l); n != 3 {
		t.Errorf("removed %d, want 3", n)
	}
	if hasFile(t, s, manifest) || hasFile(t, s, config) || !hasFile(t, s, layer) {
		t.Error("bytes of the dead stay, or those of another namespace go")
	}
	if n := collectAll(t, s, c); n != 1 || hasFile(t, s, layer) {
		t.Errorf("removed %d, want 1", n)
	}
	checkFiles(t, s, "at the end")
}

// TestSweepTellsNobody: there is no event for what nobody needs.
func TestSweepTellsNobody(t *testing.T) {
	heard := make(listener, 10)
	s, err := Open(testConfig(t), Needs{Events: heard})
	must(t, err)
	t.Cleanup(func() { closeStore(t, s) })
	runWork(t, s.Publish)
	put(t, s, one, body)
	collectAll(t, s, &gctest.Coordinator{})
	put(t, s, one, []byte("after"))
	for _, want := range []string{"/content/create", "/content/create"} {
		if e := <-heard; e.Topic != want {
			t.Errorf("heard %s, want %s", e.Topic, want)
		}
	}
}

func TestIngestsAreRootsAsLongAsTheyAreNeeded(t *testing.T) {
	s, c := openStore(t, testConfig(t), nil), &gctest.Coordinator{}
	start := s.now()
	l, gone := lease.Ref{ID: "l", Generation: 2}, lease.Ref{ID: "l", Generation: 1}
	expected := put(t, s, one, body)
	for _, ref := range []string{"free", "leased", "left"} {
		leaveIngest(t, s, one, ref, []byte("x"))
	}
	ofBody, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "of the body"})
	must(t, err)
	must(t, ofBody.Close())
	must(t, s.AddMember(t.Context(), "one", l, ingestOf("leased")))
	must(t, s.AddMember(t.Context(), "one", gone, ingestOf("left")))
	must(t, s.AddMember(t.Context(), "one", gone, ingestOf("open")))
	open, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "open", Expected: digest.FromString("open")})
	must(t, err)
	want := func(when string, refs ...string) {
		t.Helper()
		all, err := s.In(one).ListStatuses(t.Context())
		must(t, err)
		var got []string
		for _, st := range all {
			got = append(got, st.Ref)
		}
		if !slices.Equal(got, refs) {
			t.Errorf("%s: ingests %q, want %q", when, got, refs)
		}
	}
	collectAll(t, s, c, l)
	want("at first", "free", "leased", "of the body", "open")
	if hasFile(t, s, expected) {
		t.Error("a blob that nobody expects stays")
	}
	s.now = func() time.Time { return start.Add(100 * time.Hour) }
	if n := collectCycle(t, s, c, l); n != 2 {
		t.Errorf("after the time of ingests %d went, want 2", n)
	}
	want("after their time", "leased", "open")
	must(t, open.Close())
	if n := collectCycle(t, s, c); n != 2 {
		t.Errorf("without leases %d went, want 2", n)
	}
	want("without leases")
	s.sweep(t.Context())
	checkFiles(t, s, "at the end")
}

// collectCycle runs a cycle, and nothing else removes anything.
func collectCycle(t *testing.T, s *Store, c *gctest.Coordinator, live ...lease.Ref) int {
	t.Helper()
	c.Leases = func() map[string][]lease.Ref { return map[string][]lease.Ref{"one": live} }
	n, err := c.Cycle(t.Context())
	must(t, err)
	return n
}

// TestAnExpectedBlobIsKeptByItsIngest: the ingest of another digest keeps it
// not.
func TestAnExpectedBlobIsKeptByItsIngest(t *testing.T) {
	s, c := openStore(t, testConfig(t), nil), &gctest.Coordinator{}
	d := digest.FromBytes(body)
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r", Expected: d})
	must(t, err)
	must(t, w.Close())
	must(t, content.Put(t.Context(), s.In(one), content.WriterOptions{Ref: "other"}, bytes.NewReader(body), nil))
	if n := collectAll(t, s, c); n != 0 || !hasFile(t, s, d) {
		t.Errorf("removed %d", n)
	}
	must(t, s.In(one).Abort(t.Context(), "r"))
	if n := collectAll(t, s, c); n != 1 {
		t.Errorf("removed %d, want 1", n)
	}
}

// TestSweepTakesWhatIsLarge: more leases than one transaction can take it from.
func TestSweepTakesWhatIsLarge(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	long := string(bytes.Repeat([]byte("l"), 1000))
	dead := []gc.Node{}
	for i := range 3 {
		d := put(t, s, one, []byte{byte(i)})
		dead = append(dead, node("one", lease.TypeContent, d.String()))
		for g := range 400 * (i % 2) {
			must(t, s.AddMember(t.Context(), "one", lease.Ref{ID: long, Generation: uint64(g + 1)}, contentOf(d)))
		}
	}
	must(t, s.Begin(t.Context(), 1))
	for _, err := range s.Freeze(t.Context(), 1, gc.Now().Add(gc.HoldMax)) {
		must(t, err)
	}
	n, err := s.Sweep(t.Context(), 1, dead)
	if n != 3 || err != nil {
		t.Errorf("Sweep: %d, %v", n, err)
	}
	must(t, s.End(t.Context(), 1))
	if left, err := s.ListMembers(t.Context(), "one", lease.Ref{ID: long, Generation: 7}); err != nil || len(left) > 0 {
		t.Errorf("members stay: %v, %v", left, err)
	}
}

// TestARecordThatIsDamagedStopsTheCycle: nobody knows what it refers to.
func TestARecordThatIsDamagedStopsTheCycle(t *testing.T) {
	s, c := openStore(t, testConfig(t), nil), &gctest.Coordinator{Now: gc.Now}
	c.Owners = []gc.Owner{s}
	d, other := put(t, s, one, body), put(t, s, one, []byte("other"))
	must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put(blobKey("one", d), []byte("{")) }))
	if _, err := c.Cycle(t.Context()); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("Cycle: %v", err)
	}
	remove(t, s, one, d)
	if n := collectAll(t, s, c); n != 1 || hasFile(t, s, other) {
		t.Errorf("removed %d, want 1", n)
	}
}
