package snapshotd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/snapshotd/mounter"
)

var _ gc.Owner = (*Store)(nil)

// markBatch is how many objects are read in one transaction.
const markBatch = 400

// Begin implements [gc.Owner].
func (s *Store) Begin(ctx context.Context, epoch gc.Epoch) error { return s.gate.Begin(ctx, epoch) }

// End implements [gc.Owner].
func (s *Store) End(ctx context.Context, epoch gc.Epoch) error { return s.gate.End(ctx, epoch) }

// Mark implements [gc.Owner]. At its end the database has to prove that it lacks
// no row: of a table that is damaged while it is used it says that its rows are
// not there, and so would what they refer to seem to be garbage.
func (s *Store) Mark(ctx context.Context, epoch gc.Epoch) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		for _, rows := range []string{"snapshot", mounter.Rows} {
			for from, more := []byte(nil), true; more; more = from != nil {
				batch, next, err := s.markSome(rows, from)
				if !s.yieldAll(ctx, epoch, batch, err, yield) {
					return
				}
				from = next
			}
		}
		if err := s.kv.Verify(ctx); err != nil {
			yield(gc.Object{}, err)
		}
	}
}

// markSome reads the next objects, and the key to go on from.
func (s *Store) markSome(rows string, from []byte) (batch []gc.Object, next []byte, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key(rows, ""), from) {
			if len(batch) == markBatch {
				next = key
				break
			}
			n, _ := nodeAt(key)
			o, err := object(n, key, value)
			if err != nil {
				return err
			}
			batch = append(batch, o)
		}
		return readLeases(tx, batch)
	})
	return batch, next, err
}

// yieldAll says whether there is a reason to go on.
func (s *Store) yieldAll(ctx context.Context, epoch gc.Epoch, batch []gc.Object, err error, yield func(gc.Object, error) bool) bool {
	if err == nil {
		err = errors.Join(ctx.Err(), s.gate.Check(epoch))
	}
	if err != nil {
		yield(gc.Object{}, err)
		return false
	}
	for _, o := range batch {
		if !yield(o, nil) {
			return false
		}
	}
	return true
}

// object reads what a record says. A snapshot keeps its parent; nothing but its
// labels, leases and containers keeps an active one, as in containerd.
func object(n gc.Node, key, value []byte) (gc.Object, error) {
	if n.Type == gc.TypeMounts {
		return mounter.Object(key, value)
	}
	o := gc.Object{Node: n}
	r, err := readRecord(key, value)
	if err != nil {
		return o, err
	}
	o.Size = r.Size
	if r.Parent != "" {
		o.Refs = []lease.Resource{{Type: n.Type, ID: r.Parent}}
	}
	o.Read(r.Labels)
	return o, nil
}

// readRecord is [errdefs.ErrDataLoss] for a record that is damaged.
func readRecord(key, value []byte) (record, error) {
	var r record
	err := json.Unmarshal(value, &r)
	if err == nil && (r.ID == 0 || r.Kind == "") {
		err = errors.New("it has no tree or no kind")
	}
	if err != nil {
		return r, fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
	}
	return r, nil
}

// readLeases reads the leases of objects in the order of their keys: one scan
// for those of a shelf.
func readLeases(tx *kv.Tx, objects []gc.Object) error {
	for rest := objects; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Namespace == rest[0].Namespace && rest[n].Type == rest[0].Type {
			n++
		}
		if err := addLeases(tx, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// addLeases is of objects of one shelf.
func addLeases(tx *kv.Tx, run []gc.Object) error {
	at := make(map[string]*gc.Object, len(run))
	for i := range run {
		at[run[i].ID] = &run[i]
	}
	first, last := run[0], run[len(run)-1]
	rows := func(id string) []byte { return kv.Key("leased", first.Namespace, first.Type, id) }
	past := append(rows(last.ID), 1) // whose parts are separated by 0
	for key := range tx.Scan(rows(""), rows(first.ID)) {
		if bytes.Compare(key, past) >= 0 {
			break
		}
		m, err := memberAt(key)
		if err != nil {
			return err
		}
		if o := at[m.of.ID]; o != nil {
			o.Leases = append(o.Leases, m.lease)
		}
	}
	return nil
}

// Freeze implements [gc.Owner].
func (s *Store) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		noted, err := s.db.Freeze(ctx, epoch, deadline)
		for len(noted) > 0 || err != nil {
			n := min(len(noted), markBatch)
			var batch []gc.Object
			if err == nil {
				batch, err = s.readNodes(noted[:n])
			}
			if !s.yieldAll(ctx, epoch, batch, err, yield) {
				return
			}
			noted = noted[n:]
		}
	}
}

// readNodes returns those of the nodes that are there.
func (s *Store) readNodes(nodes []gc.Node) (batch []gc.Object, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for _, n := range nodes {
			o, err := readNode(tx, n)
			if errors.Is(err, errdefs.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			batch = append(batch, o)
		}
		return nil
	})
	return batch, err
}

func readNode(tx *kv.Tx, n gc.Node) (gc.Object, error) {
	h, ok := shelfOf(n)
	key := h.recordKey(n.ID)
	switch {
	case n.Type == gc.TypeMounts:
		key = mounter.Key(n.Namespace, n.ID)
	case !ok:
		return gc.Object{}, fmt.Errorf("node %q: %w", n, errdefs.ErrNotFound)
	}
	value, err := tx.Get(key)
	if err != nil {
		return gc.Object{}, err
	}
	o, err := object(n, key, value)
	if err != nil {
		return gc.Object{}, err
	}
	one := []gc.Object{o}
	err = readLeases(tx, one)
	return one[0], err
}
