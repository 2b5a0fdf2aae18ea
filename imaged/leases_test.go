package imaged

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/suite"
)

var scope = namespace.Scope{Name: "ns"}

const blob = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// An owner is members in memory that can be away.
type owner struct {
	leasetest.Members

	// mu guards the fields below it.
	mu     sync.Mutex
	err    error
	before func() // called before each AddMember
}

func (o *owner) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
}

func (o *owner) state() (before func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.before, o.err
}

func (o *owner) AddMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	before, err := o.state()
	if err != nil {
		return err
	}
	if before != nil {
		before()
	}
	return o.Members.AddMember(ctx, ns, l, r)
}

func (o *owner) ListMembers(ctx context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	if _, err := o.state(); err != nil {
		return nil, err
	}
	return o.Members.ListMembers(ctx, ns, l)
}

func (o *owner) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	if _, err := o.state(); err != nil {
		return err
	}
	return o.Members.DropMembers(ctx, ns, l)
}

func owners2() (contents, snapshots *owner, needs Needs) {
	contents, snapshots = &owner{}, &owner{}
	return contents, snapshots, Needs{Members: map[string]lease.Members{suite.Contentd: contents, suite.Snapshotd: snapshots}}
}

var (
	content  = lease.Resource{ID: blob, Type: lease.TypeContent}
	snapshot = lease.Resource{ID: "key", Type: "snapshots/overlayfs"}
	img      = lease.Resource{ID: "image", Type: lease.TypeImages}
)

// leased makes a lease with one resource of each owner.
func leased(t *testing.T, s *Store, id string) lease.Ref {
	t.Helper()
	in := s.Leases().In(scope)
	if _, err := in.Create(t.Context(), id, nil); err != nil {
		t.Fatalf("Create: %v", err)
	}
	for _, r := range []lease.Resource{content, snapshot, img} {
		if err := in.AddResource(t.Context(), id, r); err != nil {
			t.Fatalf("AddResource(%v): %v", r, err)
		}
	}
	l, err := s.Lookup(t.Context(), namespace.Scope{Name: "ns", Lease: id})
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	return l
}

func TestMembersAreDroppedWhenTheirOwnerIsBack(t *testing.T) {
	contents, snapshots, needs := owners2()
	dir := t.TempDir()
	s := open(t, dir, needs)
	l := leased(t, s, "l")
	contents.fail(errdefs.ErrUnavailable)
	if err := s.Leases().In(scope).Delete(t.Context(), "l", true); err != nil {
		t.Fatalf("Delete while an owner is away: %v", err)
	}
	stop := work(t, s.Forget)
	wantMembers(t, &snapshots.Members, l, 0)
	wantMembers(t, s.members[suite.Imaged], l, 0)
	wantMembers(t, &contents.Members, l, 1)
	if n := rows(t, s, "lease.ended"); n != 1 {
		t.Errorf("%d ended leases wait, want the one of contentd", n)
	}
	stop()

	// What is left to do outlives the process.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, needs)
	defer work(t, s.Forget)()
	contents.fail(nil)
	wantMembers(t, &contents.Members, l, 0)
	wantRows(t, s, "lease.ended", 0)
}

func TestAnOwnerThatRefusesOneLeaseIsAskedForTheOthers(t *testing.T) {
	contents, _, needs := owners2()
	s := open(t, t.TempDir(), needs)
	var refs []lease.Ref
	for n := range 3 * endedBatch {
		refs = append(refs, leased(t, s, fmt.Sprintf("l%d", n)))
	}
	picky := &picky{owner: contents, refuses: refs[0]}
	s.members[suite.Contentd] = picky
	for _, l := range refs {
		if err := s.Leases().In(scope).Delete(t.Context(), l.ID, false); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	silent, err := s.forgetAll(t.Context())
	if err != nil || len(silent) != 1 {
		t.Errorf("forgetAll = %v, %v", silent, err)
	}
	wantMembers(t, &contents.Members, refs[0], 1)
	for _, l := range refs[1:] {
		wantMembers(t, &contents.Members, l, 0)
	}
	wantRows(t, s, "lease.ended", 1)
}

type picky struct {
	*owner
	refuses lease.Ref
}

func (p *picky) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	if l == p.refuses {
		return errdefs.ErrInternal
	}
	return p.owner.DropMembers(ctx, ns, l)
}

// TestAMemberOfALeaseThatEndsMeanwhileIsDropped has the lease end between its
// look-up and the owner's answer, and its members be dropped before that.
func TestAMemberOfALeaseThatEndsMeanwhileIsDropped(t *testing.T) {
	contents, _, needs := owners2()
	s := open(t, t.TempDir(), needs)
	l := leased(t, s, "l")
	in := s.Leases().In(scope)
	contents.before = func() {
		if err := in.Delete(t.Context(), "l", false); err != nil {
			t.Errorf("Delete: %v", err)
		}
		if silent, err := s.forgetAll(t.Context()); len(silent) > 0 || err != nil {
			t.Errorf("forgetAll = %v, %v", silent, err)
		}
		if _, err := in.Create(t.Context(), "l", nil); err != nil {
			t.Errorf("Create: %v", err)
		}
	}
	if err := in.AddResource(t.Context(), "l", content); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("AddResource: %v, want %v", err, errdefs.ErrNotFound)
	}
	wantMembers(t, &contents.Members, l, 1)
	if silent, err := s.forgetAll(t.Context()); len(silent) > 0 || err != nil {
		t.Errorf("forgetAll = %v, %v", silent, err)
	}
	wantMembers(t, &contents.Members, l, 0)
	if got, err := in.ListResources(t.Context(), "l"); err != nil || len(got) > 0 {
		t.Errorf("ListResources of the new lease = %v, %v", got, err)
	}
}

func TestAnOwnerThatIsAwayIsNamed(t *testing.T) {
	_, snapshots, needs := owners2()
	s := open(t, t.TempDir(), needs)
	leased(t, s, "l")
	in := s.Leases().In(scope)
	snapshots.fail(fmt.Errorf("no answer: %w", errdefs.ErrUnavailable))
	_, err := in.ListResources(t.Context(), "l")
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), suite.Snapshotd) {
		t.Errorf("ListResources: %v", err)
	}
	err = in.AddResource(t.Context(), "l", snapshot)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), suite.Snapshotd) {
		t.Errorf("AddResource: %v", err)
	}
	if err := in.AddResource(t.Context(), "l", content); err != nil {
		t.Errorf("AddResource to the other owner: %v", err)
	}
}

func TestGenerationsOutliveTheProcessAndTheClock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Needs{})
	l := leased(t, s, "l")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Needs{})
	again, err := s.Lookup(t.Context(), namespace.Scope{Name: "ns", Lease: "l"})
	if err != nil || again != l {
		t.Errorf("Lookup = %v, %v; want %v", again, err, l)
	}
	if err := s.Leases().In(scope).Delete(t.Context(), "l", false); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	s.now = func() time.Time { return time.Unix(7, 0) } // the battery is empty
	if next := leased(t, s, "l"); next.Generation <= l.Generation {
		t.Errorf("generation %d after %d", next.Generation, l.Generation)
	}
}

// TestGenerationsArePastThoseThatABackupDoesNotKnow is what keeps members that
// an owner has from an older life out of new leases.
func TestGenerationsArePastThoseThatABackupDoesNotKnow(t *testing.T) {
	before := open(t, t.TempDir(), Needs{})
	for range 100 {
		leased(t, before, "l")
		if err := before.Leases().In(scope).Delete(t.Context(), "l", false); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	last := leased(t, before, "l")
	fresh := open(t, t.TempDir(), Needs{})
	if l := leased(t, fresh, "l"); l.Generation <= last.Generation {
		t.Errorf("a database that knows nothing gives %d after %d", l.Generation, last.Generation)
	}
}

func TestExpireRemovesLeasesAtTheirTime(t *testing.T) {
	_, _, needs := owners2()
	s := open(t, t.TempDir(), needs)
	clock := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return clock }
	in := s.Leases().In(scope)
	for id, after := range map[string]time.Duration{"a": time.Minute, "b": 2 * time.Minute, "c": 90 * time.Second, "d": 24 * time.Hour} {
		if _, err := in.Create(t.Context(), id, map[string]string{lease.LabelExpire: clock.Add(after).In(time.FixedZone("", 3600)).Format(time.RFC3339)}); err != nil {
			t.Fatalf("Create: %v", err)
		}
	}
	for _, c := range []struct {
		at   time.Duration
		next time.Duration
		want []string
	}{
		{0, time.Minute, []string{"a", "b", "c", "d"}},
		{time.Minute, 30 * time.Second, []string{"b", "c", "d"}},
		{3 * time.Minute, lookAgain, []string{"d"}},
		{24*time.Hour - time.Second, time.Second, []string{"d"}},
		{25 * time.Hour, lookAgain, nil},
	} {
		clock = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).Add(c.at)
		var ids []string
		found, err := in.List(t.Context())
		for _, l := range found {
			ids = append(ids, l.ID)
		}
		if err != nil || !slices.Equal(ids, c.want) {
			t.Errorf("after %v: List = %q, %v; want %q", c.at, ids, err, c.want)
		}
		if next, err := s.expire(t.Context()); err != nil || next != c.next {
			t.Errorf("after %v: expire = %v, %v; want %v", c.at, next, err, c.next)
		}
		wantRows(t, s, "lease", len(c.want))
		wantRows(t, s, "lease.expiry", len(c.want))
		wantRows(t, s, "lease.ended", 4-len(c.want))
	}
}

// TestExpireWakesForALeaseThatEndsSooner runs the work itself.
func TestExpireWakesForALeaseThatEndsSooner(t *testing.T) {
	s := open(t, t.TempDir(), Needs{})
	defer work(t, s.Expire)()
	in := s.Leases().In(scope)
	for n := range 2 * expireBatch {
		at := time.Now().Add(time.Duration(1+n%7) * 50 * time.Millisecond).Format(time.RFC3339Nano)
		if _, err := in.Create(t.Context(), fmt.Sprint(n), map[string]string{lease.LabelExpire: at}); err != nil {
			t.Fatalf("Create: %v", err)
		}
	}
	wantRows(t, s, "lease", 0)
	wantRows(t, s, "lease.expiry", 0)
}

func TestTimesAreInOrder(t *testing.T) {
	times := []time.Time{
		time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(-1, 5), time.Unix(0, 0),
		time.Unix(0, 1), time.Unix(1, 0), time.Now(), time.Now().Add(1), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	for i, at := range times {
		if i > 0 && inOrder(times[i-1]) >= inOrder(at) {
			t.Errorf("%v is not before %v", times[i-1], at)
		}
		e, err := toExpiry(expiryKey(at, "ns", "a\x00b"))
		if err != nil || !e.at.Equal(at) || e.ns != "ns" || e.id != "a\x00b" {
			t.Errorf("toExpiry = %+v, %v; want %v", e, err, at)
		}
	}
}

// work runs a work of the daemon; the caller stops it.
func work(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("work: %v", err)
		}
	}
}

// rows counts the keys that begin with a part.
func rows(t *testing.T, s *Store, part string) int {
	t.Helper()
	n := 0
	if err := s.db.View(func(tx *kv.Tx) error {
		for range tx.Scan(kv.Key(part, ""), nil) {
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func wantRows(t *testing.T, s *Store, part string, want int) {
	t.Helper()
	eventually(t, func() string {
		if got := rows(t, s, part); got != want {
			return fmt.Sprintf("%d rows %q, want %d", got, part, want)
		}
		return ""
	})
}

func wantMembers(t *testing.T, m lease.Members, l lease.Ref, want int) {
	t.Helper()
	eventually(t, func() string {
		got, err := m.ListMembers(t.Context(), "ns", l)
		if err != nil || len(got) != want {
			return fmt.Sprintf("members of %v are %v, %v; want %d", l, got, err, want)
		}
		return ""
	})
}

// eventually waits until wrong has nothing to say.
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	deadline, tick := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		what := wrong()
		if what == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(what)
		}
	}
}
