package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// memberType is a resource's of a lease.
func memberType(snapshotter string) string { return "snapshots/" + snapshotter }

// A membership is that a snapshot of a namespace belongs to a lease: two rows,
// one to find what a lease has, and one to find who has a snapshot.
type membership struct {
	ns    string
	lease lease.Ref
	of    lease.Resource
}

func (m membership) keys() [2][]byte {
	generation := hexID(m.lease.Generation)
	return [2][]byte{
		kv.Key("member", m.ns, m.lease.ID, generation, m.of.Type, m.of.ID),
		kv.Key("leased", m.ns, m.of.Type, m.of.ID, m.lease.ID, generation),
	}
}

func (m membership) put(tx *kv.Tx) error {
	keys := m.keys()
	return errors.Join(tx.Put(keys[0], nil), tx.Put(keys[1], nil))
}

func (m membership) remove(tx *kv.Tx) error {
	keys := m.keys()
	return errors.Join(tx.Delete(keys[0]), tx.Delete(keys[1]))
}

// memberAt reads either row of a membership.
func memberAt(key []byte) (m membership, err error) {
	parts := kv.Parts(key)
	if len(parts) != 6 {
		return m, fmt.Errorf("record %q is not of a member: %w", key, errdefs.ErrDataLoss)
	}
	m.ns = parts[1]
	generation := parts[5]
	if parts[0] == "member" {
		m.lease.ID, generation, m.of = parts[2], parts[3], lease.Resource{Type: parts[4], ID: parts[5]}
	} else {
		m.of, m.lease.ID = lease.Resource{Type: parts[2], ID: parts[3]}, parts[4]
	}
	if m.lease.Generation, err = strconv.ParseUint(generation, 16, 64); err != nil {
		return m, fmt.Errorf("record %q: %w: %w", key, err, errdefs.ErrDataLoss)
	}
	return m, nil
}

// membersKey is the beginning of the rows of what a lease has.
func membersKey(ns string, l lease.Ref) []byte {
	return kv.Key("member", ns, l.ID, hexID(l.Generation), "")
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
	return join(tx, h.namespace, l, h.node(name).Resource)
}

func join(tx *kv.Tx, ns string, l lease.Ref, r lease.Resource) error {
	if l.ID == "" {
		return nil
	}
	return membership{ns: ns, lease: l, of: r}.put(tx)
}

// leave takes a snapshot from every lease of an id.
func (h shelf) leave(tx *kv.Tx, id, name string) error {
	return leave(tx, h.namespace, id, lease.Resource{Type: memberType(h.snapshotter), ID: name})
}

func leave(tx *kv.Tx, ns, id string, r lease.Resource) error {
	if id == "" {
		return nil
	}
	var errs []error
	for key := range tx.Scan(kv.Key("leased", ns, r.Type, r.ID, id, ""), nil) {
		m, err := memberAt(key)
		if err != nil {
			return err
		}
		errs = append(errs, m.remove(tx))
	}
	return errors.Join(errs...)
}

// AddMember implements lease.Members.
func (s *Store) AddMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := checkMember(r); err != nil {
		return err
	}
	return s.db.Update(ctx, membership{ns, l, r}.put)
}

// RemoveMember implements lease.Members.
func (s *Store) RemoveMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	if err := checkMember(r); err != nil {
		return err
	}
	return s.db.Release(ctx, membership{ns, l, r}.remove)
}

// ListMembers implements lease.Members. Activations are members and are not
// listed: clients know of no such type.
func (s *Store) ListMembers(_ context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	var all []lease.Resource
	err := s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(membersKey(ns, l), nil) {
			if parts := kv.Parts(key); parts[4] != gc.TypeMounts {
				all = append(all, lease.Resource{Type: parts[4], ID: parts[5]})
			}
		}
		return nil
	})
	return all, err
}

// dropMax is how many rows one transaction deletes, and dropRoom how many bytes
// they are long at most, but for the last.
const dropMax, dropRoom = 500, 100 << 10

// DropMembers implements lease.Members.
func (s *Store) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	for more := true; more; {
		err := s.db.Release(ctx, func(tx *kv.Tx) error {
			more = false
			var all []membership
			room := dropRoom
			for key := range tx.Scan(membersKey(ns, l), nil) {
				if more = len(all) == dropMax/2 || room < 0; more {
					break
				}
				m, err := memberAt(key)
				if err != nil {
					return err
				}
				all, room = append(all, m), room-2*len(key)
			}
			var errs []error
			for _, m := range all {
				errs = append(errs, m.remove(tx))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// completeMembers writes what is missing of memberships of which one row is
// there: that keeps a snapshot for too long, and not too short.
func (s *Store) completeMembers(ctx context.Context) error {
	var halves []membership
	for _, family := range []string{"member", "leased"} {
		if err := s.db.View(func(tx *kv.Tx) error {
			for key := range tx.Scan(kv.Key(family, ""), nil) {
				m, err := memberAt(key)
				if err != nil {
					s.log.Error("the record of a lease's member is damaged", "err", err)
					continue
				}
				for _, k := range m.keys() {
					if _, err := tx.Get(k); errors.Is(err, errdefs.ErrNotFound) {
						halves = append(halves, m)
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	for _, m := range halves {
		if err := s.db.Touch(ctx, m.put); err != nil {
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
