package kv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"
)

// Options say which database to open.
type Options struct {
	Dir    string // made if missing, 0700
	Owner  string // name of the daemon; a directory of another daemon's is refused
	Schema int    // version of the layout of keys that the caller writes, from 1
	// Migrate brings a database of an older schema to Schema; it is called
	// once per step, from from to from+1. Nil if there is nothing to migrate.
	Migrate func(tx *Tx, from int) error

	// Behind opens also a database that is whole but for its last commits,
	// which its witness saw; otherwise that is [errdefs.ErrDataLoss].
	Behind bool

	FreeMin  int64 // bytes of free disk below which Update refuses; 0 is a default
	CacheMax int   // bytes of memory for what [DB.GetJSON] reads; 0 is none
	Log      *slog.Logger
}

// freeMinDefault leaves room for what Badger writes beside the updates
// themselves: logs, tables and their compaction.
const freeMinDefault = 64 << 20

// A DB is an open database. Methods may be called from any goroutine.
type DB struct {
	options Options
	badger  *badger.DB
	space   *space
	witness witness
	owner   owner
	cache   cache

	// turn is held by whoever runs and commits a group.
	turn chan struct{}

	gone chan struct{} // see Gone

	// mu guards the fields below it.
	mu       sync.Mutex
	waiting  []*update
	users    int
	swapping bool // nobody may enter for a moment
	closed   bool
	idle     *sync.Cond // users became 0, or swapping false
}

// An owner is the row that says whose database this is.
type owner struct {
	Daemon      string `json:"daemon"`
	Schema      int    `json:"schema"`
	Incarnation string `json:"incarnation"`
}

// ownerKey cannot be made by [Key].
var ownerKey = []byte("\x01owner")

// Open opens or makes a database. A directory that belongs to another owner, a
// schema newer than the caller's, a database that another process has open, and
// a directory with something else in it are [errdefs.ErrFailedPrecondition]. A
// disk too full to open it is [errdefs.ErrResourceExhausted]. One that is
// damaged, or has lost anything, is [errdefs.ErrDataLoss]: it is whole, or it is
// not opened.
func Open(o Options) (*DB, error) {
	db, seen, err := open(&o)
	if err != nil {
		return nil, err
	}
	if err := db.prove(context.Background(), seen, o.Behind); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", o.Dir, err), db.Close())
	}
	if err := errors.Join(db.settle(o), db.startLedger(context.Background())); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	// A Replace was interrupted, before or after it.
	if err := os.RemoveAll(o.Dir + newSuffix); err != nil {
		o.Log.Warn("something that is no database any more stays", "dir", o.Dir+newSuffix, "err", err)
	}
	return db, nil
}

// open fills in the defaults and opens the database without asking whose it is,
// nor whether all of it is there. It returns how many commits were seen.
func open(o *Options) (*DB, uint64, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FreeMin == 0 {
		o.FreeMin = freeMinDefault
	}
	if o.Owner == "" || o.Schema < 1 {
		return nil, 0, fmt.Errorf("database %s: want an owner and a schema from 1: %w", o.Dir, errdefs.ErrInvalidArgument)
	}
	sp := &space{dir: o.Dir, freeMin: o.FreeMin, log: o.Log}
	b, err := openBadger(o, sp)
	// A process that was killed is not gone yet while a child that it was just
	// starting has its descriptors.
	for deadline := time.Now().Add(lockTime); inUse(err) && time.Now().Before(deadline); {
		<-time.After(lockTime / 50)
		b, err = openBadger(o, sp)
	}
	if inUse(err) {
		return nil, 0, fmt.Errorf("database %s: in use by another process: %w", o.Dir, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("database %s: %w", o.Dir, err)
	}
	w, seen, err := openWitness(o.Dir)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("database %s: %w", o.Dir, err), b.Close())
	}
	db := &DB{options: *o, badger: b, space: sp, witness: w, turn: make(chan struct{}, 1), gone: make(chan struct{}),
		cache: cache{max: o.CacheMax, values: make(map[string][]byte)}}
	db.idle = sync.NewCond(&db.mu)
	return db, seen, nil
}

// lockTime is how long Open waits for another process to let go.
const lockTime = time.Second

func openBadger(o *Options, sp *space) (*badger.DB, error) {
	if err := prepare(o, sp); err != nil {
		return nil, damaged(err)
	}
	b, err := tryBadger(o)
	if err != nil && !inUse(err) {
		// What stopped it may have been mended by the attempt itself.
		o.Log.Warn("opening the database again", "dir", o.Dir, "err", err)
		b, err = tryBadger(o)
	}
	return b, damaged(err)
}

// tryBadger makes what Badger does about files that it cannot understand an
// error.
func tryBadger(o *Options) (b *badger.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("badger: %v: %w", r, errdefs.ErrDataLoss)
		}
	}()
	return badger.Open(settings(o))
}

// damaged gives an error of opening the files its kind: where it is not for the
// system's reasons, it is for what is in them.
func damaged(err error) error {
	if err == nil || inUse(err) {
		return err
	}
	for _, other := range []error{
		errdefs.ErrDataLoss, errdefs.ErrFailedPrecondition, errdefs.ErrResourceExhausted, errdefs.ErrInvalidArgument,
		fs.ErrPermission, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EROFS, unix.EIO,
	} {
		if errors.Is(err, other) {
			return err
		}
	}
	return dataLoss(err)
}

// settings are small tables, no caches and nothing in the value log, so that an
// idle database costs next to nothing.
func settings(o *Options) badger.Options {
	return badger.DefaultOptions(o.Dir).
		WithLogger(logger{o.Log}).
		WithSyncWrites(true).
		WithDetectConflicts(false). // there is one writer
		WithMetricsEnabled(false).
		WithMemTableSize(memtable).
		WithNumMemtables(1).
		WithValueThreshold(300 << 10). // at most 15 % of a memtable
		WithVerifyValueChecksum(true).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithNumCompactors(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(6).
		WithBaseTableSize(1 << 20).
		WithBaseLevelSize(4 << 20).
		WithValueLogFileSize(16 << 20).
		WithNumGoroutines(2)
}

// settle reads the owner's row, or writes it into a new database, and migrates.
func (db *DB) settle(o Options) error {
	ctx := context.Background()
	if err := db.View(func(tx *Tx) error { return tx.getOwner(&db.owner) }); errors.Is(err, errdefs.ErrNotFound) {
		if err := db.View(wantEmpty); err != nil {
			return fmt.Errorf("database %s: %w", o.Dir, err)
		}
		db.owner = owner{Daemon: o.Owner, Schema: o.Schema, Incarnation: newIncarnation()}
		if err := db.Update(ctx, func(tx *Tx) error { return tx.putOwner(db.owner) }); err != nil {
			return fmt.Errorf("database %s: %w", o.Dir, err)
		}
		// The names of the files, then the name of the directory.
		return errors.Join(syncDir(o.Dir), syncDir(filepath.Dir(o.Dir)))
	} else if err != nil {
		return fmt.Errorf("database %s: %w", o.Dir, err)
	}
	if db.owner.Daemon != o.Owner {
		return fmt.Errorf("database %s belongs to %s, not to %s: %w", o.Dir, db.owner.Daemon, o.Owner, errdefs.ErrFailedPrecondition)
	}
	if db.owner.Schema > o.Schema {
		return fmt.Errorf("database %s has schema %d, newer than %d of this %s: %w", o.Dir, db.owner.Schema, o.Schema, o.Owner, errdefs.ErrFailedPrecondition)
	}
	for db.owner.Schema < o.Schema {
		if o.Migrate == nil {
			return fmt.Errorf("database %s has schema %d and nothing brings it to %d: %w", o.Dir, db.owner.Schema, o.Schema, errdefs.ErrFailedPrecondition)
		}
		next := db.owner
		next.Schema++
		if err := db.Update(ctx, func(tx *Tx) error {
			return errors.Join(o.Migrate(tx, db.owner.Schema), tx.putOwner(next))
		}); err != nil {
			return fmt.Errorf("database %s: schema %d to %d: %w", o.Dir, db.owner.Schema, next.Schema, err)
		}
		db.owner = next
		o.Log.Info("migrated the database", "dir", o.Dir, "schema", next.Schema)
	}
	return nil
}

func wantEmpty(tx *Tx) error {
	for range tx.Scan(nil, nil) {
		return fmt.Errorf("not one of ours: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (tx *Tx) getOwner(o *owner) error {
	b, err := tx.get(ownerKey)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, o)
}

func (tx *Tx) putOwner(o owner) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	tx.own[string(ownerKey)] = write{value: b}
	return nil
}

func newIncarnation() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Incarnation names this database for good: made when it was, and made anew
// when it is restored from a backup.
func (db *DB) Incarnation() string {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.owner.Incarnation
}

// View runs fn on a snapshot of the database.
func (db *DB) View(fn func(tx *Tx) error) error {
	if err := db.enter(); err != nil {
		return err
	}
	defer db.leave()
	snap := db.badger.NewTransaction(false)
	defer snap.Discard()
	return (&Tx{snap: snap}).run(fn)
}

func wantAbsent(err error) error {
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return nil
	case err == nil:
		return fmt.Errorf("there is a database: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}

// Close waits for the updates and views under way. Later calls are
// [errdefs.ErrUnavailable]. On a disk that is full to the end it is
// [errdefs.ErrResourceExhausted] and leaves the files as a kill would: nothing
// is lost, and the process has them open until it exits.
func (db *DB) Close() error {
	db.mu.Lock()
	for db.swapping {
		db.idle.Wait()
	}
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	for db.users > 0 {
		db.idle.Wait()
	}
	db.mu.Unlock()
	return db.closeFiles()
}

func (db *DB) closeFiles() error {
	db.cache.drop()
	// Badger writes what it has in memory into a table.
	if err := db.space.look(true).refuse(true); err != nil {
		return err
	}
	return db.closeBadger()
}

func (db *DB) closeBadger() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("badger: %v: %w", r, errdefs.ErrDataLoss)
		}
	}()
	return errors.Join(db.badger.Close(), db.witness.f.Close())
}

// enter counts a user of the files, which may not be unmapped before leave.
func (db *DB) enter() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	for db.swapping {
		db.idle.Wait()
	}
	if db.closed {
		return fmt.Errorf("database is closed: %w", errdefs.ErrUnavailable)
	}
	db.users++
	return nil
}

// isClosing says that long reads are in the way.
func (db *DB) isClosing() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.closed || db.swapping
}

func (db *DB) leave() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.users--; db.users == 0 {
		db.idle.Broadcast()
	}
}
