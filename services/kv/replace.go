package kv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// newSuffix is on the name of a database that is about to take another's place.
const newSuffix = ".new"

// Replace puts the rows of a backup in the place of those that are there, all or
// none, as another incarnation. The backup is read and proved first, beside the
// database, which goes on meanwhile; then everybody waits for a moment. A call
// that is in the way for too long is [errdefs.ErrUnavailable], and a backup that
// is not good what [CheckBackup] says.
func (db *DB) Replace(ctx context.Context, r io.Reader) (BackupInfo, error) {
	o := db.options
	o.Dir += newSuffix
	if err := os.RemoveAll(o.Dir); err != nil {
		return BackupInfo{}, err
	}
	defer os.RemoveAll(o.Dir)
	info, err := Restore(ctx, o, r)
	if err != nil {
		return info, err
	}
	// What it needs to be opened is tried before anybody has to wait.
	other, err := Open(o)
	if err == nil {
		err = other.Close()
	}
	if err == nil {
		err = syncDir(o.Dir)
	}
	if err != nil {
		return info, err
	}
	return info, db.replaceBy(ctx, o.Dir)
}

// replaceBy has everybody wait while the database in dir takes the place of this
// one.
func (db *DB) replaceBy(ctx context.Context, dir string) error {
	waiting, cancel := context.WithTimeout(ctx, emptyTime)
	defer cancel()
	if err := db.empty(waiting); err != nil {
		return err
	}
	defer db.fill()
	err := db.swap(dir)
	if err != nil {
		db.giveUp()
	}
	return err
}

// Gone is closed when Replace could open neither what was to come nor what had
// been there: nothing but another process will have a database again.
func (db *DB) Gone() <-chan struct{} { return db.gone }

// giveUp closes gone if there is no database.
func (db *DB) giveUp() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		close(db.gone)
	}
}

// emptyTime is how long everybody waits for the calls under way, such as a
// backup that nobody reads.
const emptyTime = 10 * time.Second

// empty lets nobody enter, and waits for those who did.
func (db *DB) empty(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.idle.Broadcast()
	})
	defer stop()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.swapping {
		return fmt.Errorf("database is closed, or being replaced: %w", errdefs.ErrUnavailable)
	}
	db.swapping = true
	for db.users > 0 && ctx.Err() == nil {
		db.idle.Wait()
	}
	if db.users > 0 {
		db.swapping = false
		db.idle.Broadcast()
		return fmt.Errorf("somebody reads the database for too long: %w", errdefs.ErrUnavailable)
	}
	return nil
}

func (db *DB) fill() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.swapping = false
	db.idle.Broadcast()
}

// swap exchanges the directories, in one step, and opens what is there then. If
// that fails they are exchanged again.
func (db *DB) swap(dir string) error {
	db.cache.drop()
	if err := db.space.look(true).refuse(true); err != nil {
		return err
	}
	if err := db.closeBadger(); err != nil {
		return errors.Join(err, db.reopen())
	}
	exchange := func() error {
		err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, db.options.Dir, unix.RENAME_EXCHANGE)
		if err == nil {
			err = syncDir(filepath.Dir(dir))
		}
		return err
	}
	if err := exchange(); err != nil {
		return errors.Join(fmt.Errorf("exchange of %s: %w", db.options.Dir, err), db.reopen())
	}
	err := db.reopen()
	if err != nil {
		err = errors.Join(err, exchange(), db.reopen())
	}
	return err
}

// reopen makes db what is in its directory. Where that is nothing that can be
// opened, db is closed.
func (db *DB) reopen() error {
	other, err := Open(db.options)
	db.mu.Lock()
	defer db.mu.Unlock()
	if err != nil {
		db.closed = true
		return err
	}
	db.closed = false
	db.badger, db.space, db.witness, db.owner = other.badger, other.space, other.witness, other.owner
	return nil
}
