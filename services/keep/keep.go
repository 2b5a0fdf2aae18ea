// Package keep keeps the records of a daemon from being lost. It backs them up,
// and puts a database aside that is damaged or missing, so that a backup takes
// its place, or nothing. Either lacks something, and the daemon that keeps
// objects beside its records completes it from what they tell.
//
//	<root>/db/                       the database
//	<root>/db.damaged-<time>/        one that was put aside, for people
//	<root>/backup/records-<time>.backup
//	<root>/rebuild                   is there as long as records may be missing
package keep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

// A Disk is every way in which this package changes the file system, but for
// backups, of which the last is as good as the one before. It is here so that a
// test can stop the machine between any two changes.
type Disk interface {
	// Touch makes an empty file that is not there.
	Touch(name string) error
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
}

// Options say whose records are kept, and how.
type Options struct {
	Root    string     // of the daemon
	Records kv.Options // of the database; Dir is filled in
	Disk    Disk
	Now     func() time.Time
	Every   time.Duration // how often there is a backup, if anything has changed

	// Objects says whether there is anything that records have to be about.
	Objects func() (bool, error)

	// Room is an error where there is no room for a backup.
	Room func() error
}

// A Keeper is the records of a daemon.
type Keeper struct {
	o   Options
	log *slog.Logger
	db  *kv.DB

	// backing is held while a backup is written, and guards the field below it.
	backing  sync.Mutex
	backedUp uint64 // commits that the last one has
}

// Open opens the database. One that has lost its last commits is used as it is.
// One that is damaged, and one that is missing where there are objects, is put
// aside, and a backup takes its place, or nothing. In each of these cases records
// may be missing, see [Keeper.Incomplete]. The order is the promise: the file
// that says so is durable before the database is moved. A crash between any two
// steps starts over.
func Open(o Options) (*Keeper, error) {
	o.Records.Dir = filepath.Join(o.Root, "db")
	k := &Keeper{o: o, log: o.Records.Log}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	var err error
	k.db, err = k.open()
	return k, err
}

func (k *Keeper) open() (db *kv.DB, err error) {
	o := k.o.Records
	due := k.Incomplete()
	known, err := k.hasRecords(o.Dir)
	if err != nil {
		return nil, err
	}
	if known {
		db, err = kv.Open(o)
		if err == nil || !errdefs.IsDataLoss(err) {
			return db, err
		}
		k.log.Error("the database is damaged and is made again", "path", o.Dir, "err", err)
	} else if !due {
		k.log.Error("there are objects and no database: it is made again", "path", o.Dir)
	}
	if err := k.Doubt(); err != nil {
		return nil, err
	}
	if known {
		// One that lacks nothing but the last commits knows more than any
		// backup.
		behind := o
		behind.Behind = true
		if db, err := kv.Open(behind); !errdefs.IsDataLoss(err) {
			return db, err
		}
	}
	if err := k.putAside(o.Dir); err != nil {
		return nil, err
	}
	if err := k.restoreNewest(o); err != nil {
		return nil, err
	}
	return kv.Open(o)
}

func (k *Keeper) putAside(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	aside := dir + ".damaged-" + k.o.Now().Format("20060102T150405.000Z")
	if err := k.o.Disk.Rename(dir, aside); err != nil {
		return fmt.Errorf("%s is damaged and stays: %w", dir, err)
	}
	return k.o.Disk.SyncDir(k.o.Root)
}

// hasRecords is false where there must have been a database and is none: there
// are objects. One that is about to be made where there are none counts as there.
// A directory without anything in it, as where a file system was not mounted,
// is no database that is new.
func (k *Keeper) hasRecords(dir string) (bool, error) {
	there, err := kv.Exists(dir)
	if err != nil || there {
		return there, err
	}
	some, err := k.o.Objects()
	return !some, err
}

// DB is the database.
func (k *Keeper) DB() *kv.DB { return k.db }

// Aside returns the databases that were put aside.
func (k *Keeper) Aside() ([]string, error) {
	return filepath.Glob(filepath.Join(k.o.Root, "db.damaged-*"))
}

// mark is the file that says, as long as it is there, that the records are not
// all there, and that what has no record is not trash.
func (k *Keeper) mark() string { return filepath.Join(k.o.Root, "rebuild") }

// Incomplete says whether records may be missing, so that what has none is not
// trash.
func (k *Keeper) Incomplete() bool {
	_, err := os.Lstat(k.mark())
	return err == nil
}

// Doubt makes the records incomplete, durably, until [Keeper.Settle].
func (k *Keeper) Doubt() error {
	if k.Incomplete() {
		return nil
	}
	return errors.Join(k.o.Disk.Touch(k.mark()), k.o.Disk.SyncDir(k.o.Root))
}

// Settle says that the records are complete.
func (k *Keeper) Settle() error {
	if err := k.o.Disk.Remove(k.mark()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return k.o.Disk.SyncDir(k.o.Root)
}

// restoreNewest makes the database of the newest backup that is whole, if there
// is one.
func (k *Keeper) restoreNewest(o kv.Options) error {
	names, err := k.Backups()
	if err != nil {
		return err
	}
	made := o
	made.Dir += ".restored"
	for _, name := range names {
		if err := os.RemoveAll(made.Dir); err != nil {
			return err
		}
		info, err := restoreFile(made, name)
		if errdefs.IsDataLoss(err) || errdefs.IsFailedPrecondition(err) {
			k.log.Error("a backup is of no use", "path", name, "err", err)
			continue
		}
		if err != nil {
			return err
		}
		k.log.Warn("a backup takes the database's place", "path", name, "records", info.Rows)
		return errors.Join(k.o.Disk.Rename(made.Dir, o.Dir), k.o.Disk.SyncDir(k.o.Root))
	}
	return os.RemoveAll(made.Dir)
}

func restoreFile(o kv.Options, name string) (kv.BackupInfo, error) {
	f, err := os.Open(name)
	if err != nil {
		return kv.BackupInfo{}, err
	}
	defer f.Close()
	info, err := kv.Restore(context.Background(), o, f)
	if err != nil {
		return info, err
	}
	d, err := os.Open(o.Dir)
	if err != nil {
		return info, err
	}
	return info, errors.Join(d.Sync(), d.Close())
}
