package imaged

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/suite"
)

// owners are the daemons that have the resources of each kind.
var owners = map[string]string{
	lease.TypeContent:   suite.Contentd,
	lease.TypeIngests:   suite.Contentd,
	lease.TypeSnapshots: suite.Snapshotd,
	lease.TypeImages:    suite.Imaged,
}

// leases are the leases of every namespace.
type leases struct{ *Store }

// In implements lease.Stores.
func (s leases) In(scope namespace.Scope) lease.Store { return leaseStore{s.Store, scope.Name} }

// A leaseStore is the leases of one namespace.
type leaseStore struct {
	*Store
	ns string
}

// A leaseRecord is a lease on disk; its id is in the key.
type leaseRecord struct {
	Generation uint64            `json:"generation"`
	Labels     map[string]string `json:"labels,omitempty"`
	CreatedAt  time.Time         `json:"created_at"`
}

func (r leaseRecord) lease(id string) lease.Lease {
	return lease.Lease{ID: id, Labels: r.Labels, CreatedAt: r.CreatedAt}
}

// expired says whether the lease protects nothing any more.
func (r leaseRecord) expired(now time.Time) bool {
	at, expires := r.lease("").Expires()
	return expires && !now.Before(at)
}

var generationKey = kv.Key("lease.generation")

func leaseKey(ns, id string) []byte { return kv.Key("lease", ns, id) }

// getLease returns a lease as it is on disk, be it expired or not.
func getLease(tx *kv.Tx, ns, id string) (leaseRecord, error) {
	var r leaseRecord
	if err := tx.GetJSON(leaseKey(ns, id), &r); err != nil {
		return leaseRecord{}, fmt.Errorf("lease %q: %w", id, err)
	}
	return r, nil
}

// living returns a lease that has not expired.
func (s *Store) living(tx *kv.Tx, ns, id string) (leaseRecord, error) {
	r, err := getLease(tx, ns, id)
	if err == nil && r.expired(s.now()) {
		return leaseRecord{}, fmt.Errorf("lease %q: %w", id, errdefs.ErrNotFound)
	}
	return r, err
}

// lookup is Lookup within tx.
func (s *Store) lookup(tx *kv.Tx, scope namespace.Scope) (lease.Ref, error) {
	r, err := s.living(tx, scope.Name, scope.Lease)
	if errdefs.IsNotFound(err) {
		// Clients look for containerd's words.
		return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	return lease.Ref{ID: scope.Lease, Generation: r.Generation}, err
}

// Lookup implements lease.Registry.
func (s *Store) Lookup(_ context.Context, scope namespace.Scope) (l lease.Ref, err error) {
	if scope.Lease == "" {
		return lease.Ref{}, fmt.Errorf("no lease to look up: %w", errdefs.ErrInvalidArgument)
	}
	err = s.db.View(func(tx *kv.Tx) error {
		l, err = s.lookup(tx, scope)
		return err
	})
	return l, err
}

// Create implements lease.Store.
func (s leaseStore) Create(ctx context.Context, id string, labels map[string]string) (lease.Lease, error) {
	if err := label.Check(labels); err != nil {
		return lease.Lease{}, err
	}
	if err := checkText(id, labels); err != nil {
		return lease.Lease{}, err
	}
	if id != "" {
		if err := lease.CheckID(id); err != nil {
			return lease.Lease{}, err
		}
		return s.create(ctx, id, labels)
	}
	// An id that is taken by chance is not taken again and again.
	for tries := 1; ; tries++ {
		l, err := s.create(ctx, newID(s.now()), labels)
		if err == nil || !errdefs.IsAlreadyExists(err) || tries == 10 {
			return l, err
		}
	}
}

// newID returns an id of containerd's form, which tools cut apart.
func newID(now time.Time) string {
	var b [3]byte
	rand.Read(b[:]) // never fails
	return fmt.Sprintf("%d-%s", now.Nanosecond(), base64.URLEncoding.EncodeToString(b[:]))
}

func (s leaseStore) create(ctx context.Context, id string, labels map[string]string) (lease.Lease, error) {
	r := leaseRecord{Labels: label.Clean(labels), CreatedAt: s.now().UTC()}
	err := s.db.Update(ctx, func(tx *kv.Tx) error {
		old, err := getLease(tx, s.ns, id)
		switch {
		case err == nil && !old.expired(s.now()):
			return fmt.Errorf("lease %q: %w", id, errdefs.ErrAlreadyExists)
		case err == nil:
			if err := s.end(tx, s.ns, id, old); err != nil {
				return err
			}
		case !errdefs.IsNotFound(err):
			return err
		}
		if r.Generation, err = s.nextGeneration(tx); err != nil {
			return err
		}
		if at, expires := r.lease(id).Expires(); expires {
			if err := tx.Put(expiryKey(at, s.ns, id), nil); err != nil {
				return err
			}
			tx.After(func() { ring(s.expires) })
		}
		return put(tx, leaseKey(s.ns, id), r)
	})
	if err != nil {
		return lease.Lease{}, err
	}
	return r.lease(id), nil
}

// nextGeneration is past the last and past the time: a database that was
// restored from a backup does not know what it gave since.
func (s *Store) nextGeneration(tx *kv.Tx) (uint64, error) {
	var last uint64
	if err := tx.GetJSON(generationKey, &last); err != nil && !errdefs.IsNotFound(err) {
		return 0, err
	}
	next := max(last+1, uint64(max(s.now().UnixNano(), 0)))
	return next, tx.PutJSON(generationKey, next)
}

// Get implements lease.Store.
func (s leaseStore) Get(_ context.Context, id string) (l lease.Lease, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		r, err := s.living(tx, s.ns, id)
		l = r.lease(id)
		return err
	})
	if err != nil {
		return lease.Lease{}, err
	}
	return l, nil
}

// Delete implements lease.Store. The members are dropped later.
func (s leaseStore) Delete(ctx context.Context, id string, _ bool) error {
	return s.db.Release(ctx, func(tx *kv.Tx) error {
		r, err := s.living(tx, s.ns, id)
		if err != nil {
			return err
		}
		return s.end(tx, s.ns, id, r)
	})
}

// List implements lease.Store.
func (s leaseStore) List(_ context.Context, filters ...string) ([]lease.Lease, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	var found []lease.Lease
	err = s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(leaseKey(s.ns, ""), nil) {
			id := kv.Parts(key)[2]
			var r leaseRecord
			if err := json.Unmarshal(value, &r); err != nil {
				return fmt.Errorf("lease %q: %v: %w", id, err, errdefs.ErrDataLoss)
			}
			if l := r.lease(id); !r.expired(s.now()) && f.Match(l.Field) {
				found = append(found, l)
			}
		}
		return nil
	})
	return found, err
}

// ref is the lease of that id.
func (s leaseStore) ref(id string) (l lease.Ref, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		r, err := s.living(tx, s.ns, id)
		l = lease.Ref{ID: id, Generation: r.Generation}
		return err
	})
	return l, err
}

// owner returns who keeps r as a member.
func (s leaseStore) owner(r lease.Resource) (string, lease.Members, error) {
	if err := r.Check(); err != nil {
		return "", nil, err
	}
	daemon := owners[r.Kind()]
	m, ok := s.members[daemon]
	if !ok {
		return "", nil, fmt.Errorf("no daemon keeps %s: %w", r.Type, errdefs.ErrUnavailable)
	}
	return daemon, m, nil
}

// AddResource implements lease.Store.
func (s leaseStore) AddResource(ctx context.Context, id string, r lease.Resource) error {
	l, err := s.ref(id)
	if err != nil {
		return err
	}
	daemon, m, err := s.owner(r)
	if err != nil {
		return err
	}
	if err := ask(ctx, daemon, callTime, func(ctx context.Context) error { return m.AddMember(ctx, s.ns, l, r) }); err != nil {
		return err
	}
	// The lease may have ended, and its members be dropped, in the meantime.
	// Then nobody would drop this one.
	return s.stillThere(ctx, l)
}

// stillThere has the members of l dropped again, if it ended.
func (s leaseStore) stillThere(ctx context.Context, l lease.Ref) error {
	now, err := s.ref(l.ID)
	if err == nil && now == l {
		return nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := s.db.Release(ctx, func(tx *kv.Tx) error { return s.drop(tx, s.ns, l) }); err != nil {
		return err
	}
	return fmt.Errorf("lease %q: %w", l.ID, errdefs.ErrNotFound)
}

// DeleteResource implements lease.Store.
func (s leaseStore) DeleteResource(ctx context.Context, id string, r lease.Resource) error {
	l, err := s.ref(id)
	if err != nil {
		return err
	}
	daemon, m, err := s.owner(r)
	if err != nil {
		return err
	}
	return ask(ctx, daemon, callTime, func(ctx context.Context) error { return m.RemoveMember(ctx, s.ns, l, r) })
}

// ListResources implements lease.Store.
func (s leaseStore) ListResources(ctx context.Context, id string) ([]lease.Resource, error) {
	l, err := s.ref(id)
	if err != nil {
		return nil, err
	}
	daemons := slices.Sorted(maps.Keys(s.members))
	found := make([][]lease.Resource, len(daemons))
	all, ctx := errgroup.WithContext(ctx)
	for i, daemon := range daemons {
		all.Go(func() error {
			return ask(ctx, daemon, callTime, func(ctx context.Context) (err error) {
				found[i], err = s.members[daemon].ListMembers(ctx, s.ns, l)
				return err
			})
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	resources := slices.Concat(found...)
	slices.SortFunc(resources, lease.Resource.Compare)
	return resources, nil
}

// ask makes a call to another daemon. One that does not answer within a time is
// [errdefs.ErrUnavailable], unless it is the caller's own time that is over.
func ask(ctx context.Context, daemon string, within time.Duration, call func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := call(bounded)
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("no answer in %v: %w", within, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", daemon, err)
}
