package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// memberType is a resource's of a lease.
func memberType(snapshotter string) string { return "snapshots/" + snapshotter }

func memberKey(ns string, l lease.Ref, parts ...string) []byte {
	return kv.Key(append([]string{"member", ns, l.ID, hexID(l.Generation)}, parts...)...)
}

func checkMember(r lease.Resource) error {
	name, ok := strings.CutPrefix(r.Type, memberType(""))
	if !ok || name == "" {
		return fmt.Errorf("resource of type %q: %w", r.Type, errdefs.ErrNotImplemented)
	}
	return nil
}

// join makes a snapshot a resource of the lease, if there is one.
func (h shelf) join(tx *kv.Tx, l lease.Ref, name string) error {
	if l.ID == "" {
		return nil
	}
	return tx.Put(memberKey(h.namespace, l, memberType(h.snapshotter), name), nil)
}

// leave takes a snapshot from every lease of an id.
func (h shelf) leave(tx *kv.Tx, id, name string) error {
	if id == "" {
		return nil
	}
	var errs []error
	var last string
	for key := range tx.Scan(kv.Key("member", h.namespace, id, ""), nil) {
		if generation := kv.Parts(key)[3]; generation != last {
			last = generation
			errs = append(errs, tx.Delete(kv.Key("member", h.namespace, id, generation, memberType(h.snapshotter), name)))
		}
	}
	return errors.Join(errs...)
}

// AddMember implements lease.Members.
func (s *Store) AddMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := checkMember(r); err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *kv.Tx) error { return tx.Put(memberKey(ns, l, r.Type, r.ID), nil) })
}

// RemoveMember implements lease.Members.
func (s *Store) RemoveMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := checkMember(r); err != nil {
		return err
	}
	return s.db.Release(ctx, func(tx *kv.Tx) error { return tx.Delete(memberKey(ns, l, r.Type, r.ID)) })
}

// ListMembers implements lease.Members.
func (s *Store) ListMembers(_ context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	var all []lease.Resource
	err := s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(memberKey(ns, l, ""), nil) {
			parts := kv.Parts(key)
			all = append(all, lease.Resource{Type: parts[4], ID: parts[5]})
		}
		return nil
	})
	return all, err
}

// dropMax is how many rows one transaction deletes.
const dropMax = 500

// DropMembers implements lease.Members.
func (s *Store) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	for more := true; more; {
		err := s.db.Release(ctx, func(tx *kv.Tx) error {
			more = false
			var keys [][]byte
			for key := range tx.Scan(memberKey(ns, l, ""), nil) {
				if len(keys) == dropMax {
					more = true
					break
				}
				keys = append(keys, key)
			}
			var errs []error
			for _, key := range keys {
				errs = append(errs, tx.Delete(key))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Holdings implements namespace.Holder.
func (s *Store) Holdings(context.Context) ([]namespace.Holding, error) {
	var all []namespace.Holding
	err := s.db.View(func(tx *kv.Tx) error {
		prefix := kv.Key("snapshot", "")
		for from := prefix; from != nil; {
			var next []byte
			for key := range tx.Scan(prefix, from) {
				parts := kv.Parts(key)
				all = append(all, namespace.Holding{Namespace: parts[2], Kind: "snapshots", Of: parts[1]})
				// On to the first key that does not begin like this one: no
				// part begins with the byte after the separator.
				next = kv.Key("snapshot", parts[1], parts[2], "")
				next[len(next)-1]++
				break
			}
			from = next
		}
		return nil
	})
	return all, err
}
