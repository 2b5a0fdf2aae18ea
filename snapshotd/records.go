package snapshotd

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// A record is what is kept of a snapshot; its key is its name.
type record struct {
	ID      uint64            `json:"id"` // of its tree
	Kind    snapshot.Kind     `json:"kind"`
	Parent  string            `json:"parent,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	Inodes  int64             `json:"inodes,omitempty"` // of a committed one
	Size    int64             `json:"size,omitempty"`   // of a committed one, in bytes

	// Onto is the tree that an active one without a parent began to be put on:
	// after that it fits no other.
	Onto uint64 `json:"onto,omitempty"`

	// Key is what an external snapshotter calls it, if that is not what ref
	// makes of the rest.
	Key string `json:"key,omitempty"`
}

func (r record) info(name string) snapshot.Info {
	return snapshot.Info{
		Kind: r.Kind, Name: name, Parent: r.Parent, Labels: r.Labels, CreatedAt: r.Created, UpdatedAt: r.Updated,
	}
}

// hasTree tells whether the snapshot has a tree of its own.
func (r record) hasTree(t driver.Traits) bool {
	return r.Kind != snapshot.View || r.Parent == "" || t.Views
}

// An owner is whose a directory is.
type owner struct {
	Snapshotter string `json:"snapshotter"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
}

func (o owner) shelf() shelf { return shelf{o.Snapshotter, o.Namespace} }

// A piece of trash is a tree whose snapshot is gone.
type trash struct {
	Since       time.Time `json:"since"`
	Snapshotter string    `json:"snapshotter"`
	Key         string    `json:"key"` // see driver.Ref
}

func hexID(id uint64) string { return fmt.Sprintf("%016x", id) }

func dirKey(id uint64) []byte   { return kv.Key("dir", hexID(id)) }
func trashKey(id uint64) []byte { return kv.Key("trash", hexID(id)) }

var lastKey = kv.Key("last")

// idOf reads the id in a key made by dirKey or trashKey.
func idOf(key []byte) (uint64, error) {
	parts := kv.Parts(key)
	id, err := strconv.ParseUint(parts[len(parts)-1], 16, 64)
	if err != nil {
		return 0, fmt.Errorf("key %q: %w", key, errdefs.ErrDataLoss)
	}
	return id, nil
}

// A shelf is the records of one namespace in one snapshotter.
type shelf struct{ snapshotter, namespace string }

func (h shelf) recordKey(name string) []byte {
	return kv.Key("snapshot", h.snapshotter, h.namespace, name)
}

// childKey is a row without value that says that child is one of parent's.
func (h shelf) childKey(parent, child string) []byte {
	return kv.Key("child", h.snapshotter, h.namespace, parent, child)
}

func (h shelf) get(tx *kv.Tx, name string) (record, error) {
	var r record
	switch err := tx.GetJSON(h.recordKey(name), &r); {
	case errors.Is(err, errdefs.ErrNotFound):
		return r, fmt.Errorf("snapshot %s: %w", name, errdefs.ErrNotFound)
	case err != nil:
		return r, err
	}
	return r, nil
}

func (h shelf) exists(tx *kv.Tx, name string) (bool, error) {
	switch _, err := tx.Get(h.recordKey(name)); {
	case errors.Is(err, errdefs.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

// put writes a record and the rows that go with it, by what its driver is like.
func (h shelf) put(tx *kv.Tx, name string, r record, t driver.Traits) error {
	errs := []error{tx.PutJSON(h.recordKey(name), r)}
	if r.Parent != "" {
		errs = append(errs, tx.Put(h.childKey(r.Parent, name), nil))
	}
	if r.hasTree(t) {
		errs = append(errs, tx.PutJSON(dirKey(r.ID), owner{h.snapshotter, h.namespace, name}))
	}
	return errors.Join(errs...)
}

// drop deletes a record and the rows that go with it.
func (h shelf) drop(tx *kv.Tx, name string, r record) error {
	errs := []error{tx.Delete(h.recordKey(name)), tx.Delete(dirKey(r.ID)), tx.Delete(originKey(r.ID))}
	if r.Parent != "" {
		errs = append(errs, tx.Delete(h.childKey(r.Parent, name)))
	}
	return errors.Join(errs...)
}

func (h shelf) hasChild(tx *kv.Tx, name string) bool {
	for range tx.Scan(h.childKey(name, ""), nil) {
		return true
	}
	return false
}

// checkParent refuses what cannot have children.
func (h shelf) checkParent(tx *kv.Tx, name string) error {
	r, err := h.get(tx, name)
	if err != nil {
		return fmt.Errorf("parent %w", err)
	}
	if r.Kind != snapshot.Committed {
		return fmt.Errorf("parent %s is not committed: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ref names the tree of a snapshot.
func (h shelf) ref(name string, r record) driver.Ref {
	key := r.Key
	if key == "" {
		key = h.namespace + "/" + strconv.FormatUint(r.ID, 10) + "/" + name
	}
	return driver.Ref{ID: r.ID, Namespace: h.namespace, Key: key}
}

// known is what a driver has to know of a snapshot.
func (h shelf) known(name string, r record, parents []driver.Ref) driver.Snapshot {
	return driver.Snapshot{Ref: h.ref(name, r), Kind: r.Kind, Parents: parents, Labels: inherited(r.Labels)}
}

// inherited are the labels that are handed down to drivers.
func inherited(labels map[string]string) map[string]string {
	down := maps.Clone(labels)
	maps.DeleteFunc(down, func(k, _ string) bool { return !driver.Inherited(k) })
	return down
}

// chain returns the trees of name and of what is below it, the topmost first;
// none for an empty name.
func (h shelf) chain(tx *kv.Tx, name string) ([]driver.Ref, error) {
	var refs []driver.Ref
	for name != "" {
		r, err := h.get(tx, name)
		if err != nil {
			return nil, fmt.Errorf("parent %v: %w", err, errdefs.ErrDataLoss)
		}
		refs = append(refs, h.ref(name, r))
		name = r.Parent
	}
	return refs, nil
}

// raiseLast notes that ids up to id have been used.
func raiseLast(tx *kv.Tx, id uint64) error {
	var last uint64
	if err := tx.GetJSON(lastKey, &last); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	return tx.PutJSON(lastKey, max(last, id))
}
