// Package kv is the database that a daemon keeps its records in: ordered keys,
// transactions that are durable when they return, and group commit.
package kv

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
)

// Options say which database to open.
type Options struct {
	Dir    string // made if missing, 0700
	Owner  string // name of the daemon; a directory of another daemon's is refused
	Schema int    // version of the layout of keys that the caller writes, from 1
	// Migrate brings a database of an older schema to Schema; it is called
	// once per step, from from to from+1. Nil if there is nothing to migrate.
	Migrate func(tx *Tx, from int) error

	FreeMin int64 // bytes of free disk below which Update refuses; 0 is a default
	Log     *slog.Logger
}

// A DB is an open database. Methods may be called from any goroutine.
type DB struct{}

// Open opens or makes a database. A directory that belongs to another owner, a
// schema newer than the caller's, and a database that another process has open
// are [errdefs.ErrFailedPrecondition].
func Open(o Options) (*DB, error) { return nil, errors.New("kv: not written") }

// Incarnation names this database for good: made when it was, and made anew
// when it is restored from a backup.
func (db *DB) Incarnation() string { return "" }

// View runs fn on a snapshot of the database.
func (db *DB) View(fn func(tx *Tx) error) error { return nil }

// Update runs fn and makes what it wrote durable before it returns nil. The
// updates of concurrent callers share one commit; each sees those before it.
// When fn fails nothing of it is written and its error is returned unchanged.
// fn does no I/O, calls nobody and may not keep tx. A disk that is nearly full
// is [errdefs.ErrResourceExhausted].
func (db *DB) Update(ctx context.Context, fn func(tx *Tx) error) error { return nil }

// Release is Update for what frees space; it goes on when the disk is nearly
// full.
func (db *DB) Release(ctx context.Context, fn func(tx *Tx) error) error { return nil }

// Backup writes a backup that Restore reads.
func (db *DB) Backup(w io.Writer) error { return nil }

// Close waits for the updates under way.
func (db *DB) Close() error { return nil }

// A Tx is a transaction. Slices it returns are the caller's.
type Tx struct{}

// Get is [errdefs.ErrNotFound] if there is no such key.
func (tx *Tx) Get(key []byte) ([]byte, error) { return nil, nil }

// Put sets a key.
func (tx *Tx) Put(key, value []byte) error { return nil }

// Delete removes a key; a missing one is fine.
func (tx *Tx) Delete(key []byte) error { return nil }

// Scan yields the keys that have the prefix and are at or past from, in byte
// order; an empty from begins at the prefix. It sees what the transaction
// wrote before Scan was called.
func (tx *Tx) Scan(prefix, from []byte) iter.Seq2[[]byte, []byte] { return nil }

// GetJSON reads a key into v. PutJSON sets it.
func (tx *Tx) GetJSON(key []byte, v any) error { return nil }

// PutJSON sets a key to v's JSON.
func (tx *Tx) PutJSON(key []byte, v any) error { return nil }

// Key joins parts with a separator that none of them may contain, so that a
// scan of Key(a, "") sees a's children only. Parts may hold any byte but NUL.
func Key(parts ...string) []byte { return nil }

// Parts takes a key apart again.
func Parts(key []byte) []string { return nil }
