package imaged

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// dropBatch is how many members one transaction drops.
const dropBatch = 1000

// ownMembers are the images that belong to leases.
type ownMembers struct{ *Store }

var _ lease.Members = ownMembers{}

func memberKey(ns string, l lease.Ref, name string) []byte {
	return kv.Key("member", ns, l.ID, fmt.Sprintf("%016x", l.Generation), name)
}

func wantImage(r lease.Resource) error {
	if err := r.Check(); err != nil {
		return err
	}
	if r.Type != lease.TypeImages {
		return fmt.Errorf("resource type %q: not kept here: %w", r.Type, errdefs.ErrNotImplemented)
	}
	return nil
}

// AddMember implements lease.Members.
func (m ownMembers) AddMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := wantImage(r); err != nil {
		return err
	}
	return m.db.Update(ctx, func(tx *kv.Tx) error { return tx.Put(memberKey(ns, l, r.ID), nil) })
}

// RemoveMember implements lease.Members.
func (m ownMembers) RemoveMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := wantImage(r); err != nil {
		return err
	}
	return m.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(memberKey(ns, l, r.ID)) })
}

// ListMembers implements lease.Members.
func (m ownMembers) ListMembers(_ context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	var found []lease.Resource
	err := m.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(memberKey(ns, l, ""), nil) {
			found = append(found, lease.Resource{ID: kv.Parts(key)[4], Type: lease.TypeImages})
		}
		return nil
	})
	return found, err
}

// DropMembers implements lease.Members.
func (m ownMembers) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	for {
		var keys [][]byte
		err := m.db.View(func(tx *kv.Tx) error {
			for key := range tx.Scan(memberKey(ns, l, ""), nil) {
				if keys = append(keys, key); len(keys) == dropBatch {
					break
				}
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		if err := m.db.Release(ctx, func(tx *kv.Tx) error {
			for _, key := range keys {
				if err := tx.Delete(key); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
}
