package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
)

// put makes b a blob of the scope.
func put(t testing.TB, s *Store, scope namespace.Scope, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	o := content.WriterOptions{Ref: "put-" + d.String(), Total: int64(len(b)), Expected: d}
	if err := content.Put(t.Context(), s.In(scope), o, bytes.NewReader(b), nil); err != nil {
		t.Fatalf("Put: %v", err)
	}
	return d
}

func remove(t testing.TB, s *Store, scope namespace.Scope, d digest.Digest) {
	t.Helper()
	if err := s.In(scope).Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
}

// leaveIngest writes to an ingest and closes it.
func leaveIngest(t testing.TB, s *Store, scope namespace.Scope, ref string, b []byte) {
	t.Helper()
	w, err := s.In(scope).Writer(t.Context(), content.WriterOptions{Ref: ref})
	if err != nil {
		t.Fatalf("Writer: %v", err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatalf("Write: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func hasFile(t testing.TB, s *Store, d digest.Digest) bool {
	t.Helper()
	_, err := os.Lstat(s.path(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func hasTrash(t testing.TB, s *Store, d digest.Digest) (has bool) {
	t.Helper()
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		has, err = present(tx, trashKey(d))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return has
}

// eventually waits until what holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestBytesThatNobodyHasAreRemoved(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	runWork(t, s.Collect)
	d := put(t, s, one, body)
	put(t, s, two, body)
	remove(t, s, one, d)
	other := put(t, s, one, []byte("other"))
	remove(t, s, one, other)
	eventually(t, "the other blob is removed", func() bool { return !hasFile(t, s, other) })
	if !hasFile(t, s, d) {
		t.Error("bytes that a namespace has are removed")
	}
	remove(t, s, two, d)
	eventually(t, "the blob is removed", func() bool { return !hasFile(t, s, d) })
	eventually(t, "nothing is trash", func() bool { return !hasTrash(t, s, d) && !hasTrash(t, s, other) })
	checkFiles(t, s, "at the end")
}

func TestBytesThatAWriterBorrowsAreNotRemoved(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := put(t, s, one, body)
	w, err := s.In(two).Writer(t.Context(), content.WriterOptions{Ref: "r", Expected: d})
	if err != nil {
		t.Fatalf("Writer: %v", err)
	}
	remove(t, s, one, d)
	s.sweep(t.Context())
	if !hasFile(t, s, d) {
		t.Fatal("removed while a writer borrows them")
	}
	// They can still be borrowed.
	w2, err := s.In(two).Writer(t.Context(), content.WriterOptions{Ref: "r2", Expected: d})
	if err != nil {
		t.Fatalf("Writer: %v", err)
	}
	if st, err := w2.Status(t.Context()); err != nil || st.Offset != int64(len(body)) {
		t.Errorf("Status: %+v, %v", st, err)
	}
	if err := errors.Join(w.Close(), w2.Close()); err != nil {
		t.Errorf("Close: %v", err)
	}
	s.sweep(t.Context())
	if hasFile(t, s, d) {
		t.Error("stay when no writer borrows them")
	}
}

func TestAReaderOutlivesTheFile(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := put(t, s, one, body)
	r, err := s.In(one).Open(t.Context(), d)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	remove(t, s, one, d)
	s.sweep(t.Context())
	if hasFile(t, s, d) {
		t.Error("the file stays")
	}
	got := make([]byte, len(body))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("ReadAt: %v", err)
	}
}

func TestWhatCannotBeRemovedStopsNothingElse(t *testing.T) {
	cfg := testConfig(t)
	p := newPower(t, cfg.Root, 0, true)
	s, err := p.open(cfg, Needs{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer closeStore(t, s)
	var all []digest.Digest
	for i := range 5 {
		all = append(all, put(t, s, one, []byte{byte(i)}))
		remove(t, s, one, all[i])
	}
	left := func() (n int) {
		for _, d := range all {
			if hasFile(t, s, d) {
				n++
			}
		}
		return n
	}
	p.failOn = "remove"
	s.sweep(t.Context())
	if n := left(); n != 1 {
		t.Errorf("%d files are left, want 1", n)
	}
	p.failOn = "release"
	s.sweep(t.Context())
	s.sweep(t.Context())
	if n := left(); n != 0 {
		t.Errorf("%d files are left, want 0", n)
	}
	checkFiles(t, s, "at the end")
}

// registry answers for imaged, or does not.
type registry struct {
	*leasetest.Memory
	away bool
}

func (r *registry) Lookup(ctx context.Context, scope namespace.Scope) (lease.Ref, error) {
	if r.away {
		return lease.Ref{}, fmt.Errorf("imaged does not answer: %w", errdefs.ErrUnavailable)
	}
	return r.Memory.Lookup(ctx, scope)
}

func TestIngestsThatNobodyWritesAreRemovedAfterADay(t *testing.T) {
	leases := &registry{Memory: &leasetest.Memory{}}
	s := openStore(t, testConfig(t), leases)
	leased := namespace.Scope{Name: "one", Lease: "l"}
	if _, err := leases.In(one).Create(t.Context(), "l", nil); err != nil {
		t.Fatal(err)
	}
	start := s.now()
	later := func(d time.Duration) { s.now = func() time.Time { return start.Add(d) } }
	leaveIngest(t, s, one, "old", body)
	leaveIngest(t, s, leased, "leased", body)
	open, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "open"})
	if err != nil {
		t.Fatal(err)
	}
	later(12 * time.Hour)
	leaveIngest(t, s, one, "touched", body)

	want := func(when string, refs ...string) {
		t.Helper()
		s.sweep(t.Context())
		var got []string
		all, err := s.In(one).ListStatuses(t.Context())
		for _, st := range all {
			got = append(got, st.Ref)
		}
		if err != nil || strings.Join(got, " ") != strings.Join(refs, " ") {
			t.Errorf("%s: ingests %q, %v; want %q", when, got, err, refs)
		}
	}
	later(23 * time.Hour)
	want("after 23 hours", "leased", "old", "open", "touched")
	later(25 * time.Hour)
	want("after 25 hours", "leased", "open", "touched")
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	later(37 * time.Hour)
	want("after 37 hours", "leased", "open")
	later(100 * time.Hour)
	leases.away = true
	if err := leases.In(one).Delete(t.Context(), "l", false); err != nil {
		t.Fatal(err)
	}
	want("while nobody knows which leases there are", "leased")
	leases.away = false
	want("without the lease")
	checkFiles(t, s, "at the end")
}

func TestIngestsThatLoseTheirLastLeaseAreRemoved(t *testing.T) {
	leases := &leasetest.Memory{}
	s := openStore(t, testConfig(t), leases)
	var refs []lease.Ref
	for _, id := range []string{"a", "b"} {
		if _, err := leases.In(one).Create(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
		scope := namespace.Scope{Name: "one", Lease: id}
		l, err := leases.Lookup(t.Context(), scope)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, l)
		leaveIngest(t, s, scope, "shared", []byte("x"))
		leaveIngest(t, s, scope, "of "+id, []byte("x"))
	}
	for i := range 600 {
		r := lease.Resource{ID: digest.FromString(fmt.Sprint(i)).String(), Type: lease.TypeContent}
		if err := s.AddMember(t.Context(), "one", refs[0], r); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"[of b shared]", "[]"} {
		if err := s.DropMembers(t.Context(), "one", refs[i]); err != nil {
			t.Fatalf("DropMembers: %v", err)
		}
		if left, err := s.ListMembers(t.Context(), "one", refs[i]); err != nil || len(left) > 0 {
			t.Errorf("%d members are left, %v", len(left), err)
		}
		s.sweep(t.Context())
		got := []string{}
		all, err := s.In(one).ListStatuses(t.Context())
		for _, st := range all {
			got = append(got, st.Ref)
		}
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("ingests %q, %v; want %s", got, err, want)
		}
	}
}

// TestLeaseThatCannotBeLookedUpIsNotARefThatIsHeld: clients would try for ever.
func TestLeaseThatCannotBeLookedUpIsNotARefThatIsHeld(t *testing.T) {
	s := openStore(t, testConfig(t), &registry{away: true})
	_, err := s.In(namespace.Scope{Name: "one", Lease: "l"}).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if !errors.Is(err, errdefs.ErrAborted) || errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Writer: %v", err)
	}
}

// TestCollectAsksTheFileWhoHasIt: a row that is not shown, of those that say who
// has a blob, costs nobody its bytes.
func TestCollectAsksTheFileWhoHasIt(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := put(t, s, one, body)
	put(t, s, two, body)
	must(t, s.db.Release(t.Context(), func(tx *kv.Tx) error { return tx.Delete(haveKey(d, two.Name)) }))
	remove(t, s, one, d)
	s.sweep(t.Context())
	if got, err := content.ReadAll(t.Context(), s.In(two), d, 1<<20); err != nil || !bytes.Equal(got, body) {
		t.Errorf("ReadAll: %q, %v", got, err)
	}
	remove(t, s, two, d)
	s.sweep(t.Context())
	if hasFile(t, s, d) {
		t.Error("nobody has it, and its file stays")
	}
}

// TestCollectBesideWriters has everybody at one digest at once. Whatever a
// namespace has is readable at any time, and at the end nothing is left over.
func TestCollectBesideWriters(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			s.sweep(ctx)
		}
	})
	for i := range 6 {
		seed := uint64(time.Now().UnixNano())
		wg.Go(func() {
			scope := namespace.Scope{Name: fmt.Sprintf("ns%d", i%3)}
			if err := putAndDelete(ctx, s, scope, fmt.Sprintf("r%d", i), rand.New(rand.NewPCG(seed, 0))); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	wg.Wait()
	for i := range 3 {
		scope := namespace.Scope{Name: fmt.Sprintf("ns%d", i)}
		for info, err := range s.In(scope).List(t.Context()) {
			if err != nil {
				t.Fatalf("List: %v", err)
			}
			if _, err := content.ReadAll(t.Context(), s.In(scope), info.Digest, 1<<20); err != nil {
				t.Errorf("%s has %v", scope.Name, err)
			}
		}
	}
	if len(s.lost) > 0 {
		t.Errorf("lost %v", s.lost)
	}
	s.sweep(t.Context())
	checkFiles(t, s, "at the end")
}

func putAndDelete(ctx context.Context, s *Store, scope namespace.Scope, ref string, rnd *rand.Rand) error {
	in := s.In(scope)
	for ctx.Err() == nil {
		b := body[:1+rnd.IntN(2)]
		o := content.WriterOptions{Ref: ref}
		if rnd.IntN(2) == 0 {
			o.Expected = digest.FromBytes(b)
		}
		err := content.Put(ctx, in, o, bytes.NewReader(b), nil)
		if err == nil {
			_, err = content.ReadAll(ctx, in, digest.FromBytes(b), 10)
			if errors.Is(err, errdefs.ErrNotFound) {
				err = nil // the other one of this namespace deleted it
			}
		}
		if err == nil {
			err = in.Delete(ctx, digest.FromBytes(b))
		}
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) && ctx.Err() == nil {
			return err
		}
	}
	return nil
}
