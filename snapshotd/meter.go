package snapshotd

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

var _ snapshot.Meter = (*Store)(nil)

// Usage implements snapshot.Meter. Nothing is held while the caller works, and
// the disk is only asked about snapshots that are not committed.
func (s *Store) Usage(ctx context.Context, scope namespace.Scope, snapshotter string) iter.Seq2[snapshot.Measured, error] {
	return func(yield func(snapshot.Measured, error) bool) {
		fail := func(err error) { yield(snapshot.Measured{}, err) }
		d, err := s.driver(snapshotter)
		if err != nil {
			fail(err)
			return
		}
		n := snapshots{s: s, scope: scope, d: d, shelf: shelf{snapshotter, scope.Name}}
		leases, err := n.leases()
		if err != nil {
			fail(err)
			return
		}
		for from := n.recordKey(""); from != nil; {
			var page []snapshot.Info
			if page, from, err = n.page(ctx, from); err != nil {
				fail(err)
				return
			}
			for _, i := range page {
				m, err := n.measure(ctx, i)
				if errors.Is(err, errdefs.ErrNotFound) {
					continue // removed meanwhile
				}
				if err != nil {
					fail(err)
					return
				}
				m.Leases = leases[i.Name]
				if !yield(m, nil) {
					return
				}
			}
		}
	}
}

// measure says what one snapshot occupies. That of a snapshot that cannot be
// measured is unknown, and the others are not.
func (n snapshots) measure(ctx context.Context, i snapshot.Info) (snapshot.Measured, error) {
	m := snapshot.Measured{Info: i}
	if err := n.s.db.View(func(tx *kv.Tx) error {
		for range tx.Scan(n.childKey(i.Name, ""), nil) {
			m.Children++
		}
		return nil
	}); err != nil {
		return m, err
	}
	var err error
	m.Usage, err = n.Usage(ctx, i.Name)
	switch {
	case err == nil, errors.Is(err, errdefs.ErrNotFound):
		return m, err
	case ctx.Err() != nil:
		return m, ctx.Err()
	}
	m.Unknown = err.Error()
	return m, nil
}

// leases returns which leases each snapshot belongs to, by their ids.
func (n snapshots) leases() (map[string][]string, error) {
	of := make(map[string][]string)
	err := n.s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("member", n.namespace, ""), nil) {
			parts := kv.Parts(key)
			id, typ, name := parts[2], parts[4], parts[5]
			if typ == memberType(n.snapshotter) && !slices.Contains(of[name], id) {
				of[name] = append(of[name], id)
			}
		}
		return nil
	})
	return of, err
}
