package kv

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/dgraph-io/badger/v4"
)

// A Tx is a transaction. Slices it returns are the caller's.
type Tx struct {
	snap  *badger.Txn
	below map[string]write // by those before it in the group
	own   map[string]write // nil in a View
	err   error            // of a Scan, which cannot return it
	after []func()
	over  bool
}

// A write is what a transaction makes of a key.
type write struct {
	value   []byte
	deleted bool
}

// run calls fn and returns its error, or else that of a scan in it.
func (tx *Tx) run(fn func(*Tx) error) error {
	defer func() { tx.over = true }()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.err
}

// Get is [errdefs.ErrNotFound] if there is no such key.
func (tx *Tx) Get(key []byte) ([]byte, error) {
	if bytes.HasPrefix(key, ownerKey) {
		return nil, errdefs.ErrNotFound
	}
	return tx.get(key)
}

func (tx *Tx) get(key []byte) ([]byte, error) {
	if tx.over {
		return nil, errOver
	}
	w, ok := tx.own[string(key)]
	if !ok {
		w, ok = tx.below[string(key)]
	}
	if ok {
		if w.deleted {
			return nil, errdefs.ErrNotFound
		}
		return bytes.Clone(w.value), nil
	}
	item, err := tx.snap.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) || errors.Is(err, badger.ErrEmptyKey) {
		return nil, errdefs.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", key, err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", key, err)
	}
	return value, nil
}

// Put sets a key. One that is empty or too long, and a value that is too long,
// are [errdefs.ErrInvalidArgument].
func (tx *Tx) Put(key, value []byte) error {
	if len(value) > valueMax {
		return fmt.Errorf("value of %d bytes: %w", len(value), errdefs.ErrInvalidArgument)
	}
	return tx.write(key, write{value: append([]byte{}, value...)})
}

// Delete removes a key; a missing one is fine.
func (tx *Tx) Delete(key []byte) error { return tx.write(key, write{deleted: true}) }

// The reasons not to write are found here, not at the commit, where one bad key
// would spoil the whole group.
func (tx *Tx) write(key []byte, w write) error {
	switch {
	case tx.over:
		return errOver
	case tx.own == nil:
		return fmt.Errorf("view is read-only: %w", errdefs.ErrFailedPrecondition)
	case len(key) == 0 || len(key) > keyMax || bytes.HasPrefix(key, ownerKey) || bytes.HasPrefix(key, badgerPrefix):
		return fmt.Errorf("key of %d bytes %.32q: %w", len(key), key, errdefs.ErrInvalidArgument)
	}
	tx.own[string(key)] = w
	return nil
}

var (
	errOver      = errors.New("transaction is over")
	badgerPrefix = []byte("!badger!") // Badger's own keys
)

// Scan yields the keys that have the prefix and are at or past from, in byte
// order; an empty from begins at the prefix. It sees what the transaction
// wrote before Scan was called. An error ends it and becomes the transaction's.
func (tx *Tx) Scan(prefix, from []byte) iter.Seq2[[]byte, []byte] {
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	prefix, from = bytes.Clone(prefix), bytes.Clone(from)
	written := tx.written(prefix, from)
	return func(yield func([]byte, []byte) bool) {
		if tx.over {
			return
		}
		it := tx.snap.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		it.Seek(from)
		for rest := written; ; {
			var stored []byte
			if it.Valid() {
				stored = it.Item().Key()
			}
			switch {
			case stored == nil && len(rest) == 0:
				return
			case stored == nil || len(rest) > 0 && bytes.Compare(rest[0].key, stored) <= 0:
				if bytes.Equal(rest[0].key, stored) {
					it.Next() // it is hidden
				}
				w := rest[0]
				rest = rest[1:]
				if !w.deleted && !yield(bytes.Clone(w.key), bytes.Clone(w.value)) {
					return
				}
			case bytes.HasPrefix(stored, ownerKey):
				it.Next()
			default:
				value, err := it.Item().ValueCopy(nil)
				if err != nil {
					tx.err = fmt.Errorf("key %q: %w", stored, err)
					return
				}
				key := bytes.Clone(stored)
				it.Next()
				if !yield(key, value) {
					return
				}
			}
		}
	}
}

type keyed struct {
	key []byte
	write
}

// written returns the writes that a scan has to lay over what is stored.
func (tx *Tx) written(prefix, from []byte) []keyed {
	var found []keyed
	add := func(k string, w write) {
		key := []byte(k)
		if bytes.HasPrefix(key, prefix) && bytes.Compare(key, from) >= 0 && !bytes.HasPrefix(key, ownerKey) {
			found = append(found, keyed{key, w})
		}
	}
	for k, w := range tx.below {
		if _, hidden := tx.own[k]; !hidden {
			add(k, w)
		}
	}
	for k, w := range tx.own {
		add(k, w)
	}
	slices.SortFunc(found, func(a, b keyed) int { return bytes.Compare(a.key, b.key) })
	return found
}

// Puts yields the keys that the transaction put until now, in no order.
func (tx *Tx) Puts() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for k, w := range tx.own {
			if !w.deleted && k != string(ownerKey) && !yield([]byte(k)) {
				return
			}
		}
	}
}

// After has fn called when the transaction is durable, before Update returns to
// its caller; never, if it fails. fn returns at once.
func (tx *Tx) After(fn func()) { tx.after = append(tx.after, fn) }

// GetJSON reads a key into v: [errdefs.ErrNotFound] if there is none and
// [errdefs.ErrDataLoss] if it is not v's JSON.
func (tx *Tx) GetJSON(key []byte, v any) error {
	b, err := tx.Get(key)
	if err != nil {
		return err
	}
	return readJSON(key, b, v)
}

// PutJSON sets a key to v's JSON.
func (tx *Tx) PutJSON(key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %q: %w", key, err)
	}
	return tx.Put(key, b)
}
