package contentd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/suite"
)

// rootLabel keeps a blob from every collection, until somebody removes it.
const rootLabel = "containerd.io/gc.root"

// rebuildBatch is how many blobs' notes are in memory at once, and txRoom how
// many bytes one transaction of many rows is given, of some 300 KiB that it may
// have.
const (
	rebuildBatch = 64
	txRoom       = 256 << 10
)

// recordsMax is how many bytes of records are kept in memory for Info: those of
// some ten thousand blobs.
const recordsMax = 4 << 20

func options(cfg Config, log *slog.Logger) kv.Options {
	return kv.Options{
		Dir:      filepath.Join(cfg.Root, "db"),
		Owner:    suite.Contentd,
		Schema:   schema,
		CacheMax: recordsMax,
		Log:      log,
	}
}

// rebuilding is the file that says, as long as it is there, that the records are
// not all there, and that what has no record is not trash.
func (s *Store) rebuilding() string { return filepath.Join(s.cfg.Root, "rebuild") }

// openRecords opens the database. One that has lost its last commits is used
// with what the files tell. One that is damaged, and one that is missing
// where there are blobs, is put aside, and a backup takes its place, or nothing;
// the records are to be rebuilt then. The order is the promise: the file that
// says so is durable before the database is moved, and is removed when the
// records are there. A crash between any two steps starts over.
func (s *Store) openRecords() (db *kv.DB, err error) {
	o := options(s.cfg, s.log)
	due := s.isRebuilding()
	known, err := s.hasRecords(o.Dir)
	if err != nil {
		return nil, kind(err)
	}
	if known {
		db, err = kv.Open(o)
		if err == nil || !errdefs.IsDataLoss(err) {
			return db, err
		}
		s.log.Error("the database is damaged and is made again", "path", o.Dir, "err", err)
	} else if !due {
		s.log.Error("there are blobs and no database: it is made again", "path", o.Dir)
	}
	if err := s.startRebuild(); err != nil {
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
	if _, err := os.Lstat(o.Dir); !errors.Is(err, fs.ErrNotExist) {
		aside := o.Dir + ".damaged-" + s.now().Format("20060102T150405.000Z")
		if err := s.disk.Rename(o.Dir, aside); err != nil {
			return nil, fmt.Errorf("%s is damaged and stays: %w", o.Dir, err)
		}
		if err := s.disk.SyncDir(s.cfg.Root); err != nil {
			return nil, err
		}
	}
	if err := s.restoreNewest(o); err != nil {
		return nil, err
	}
	return kv.Open(o)
}

func (s *Store) isRebuilding() bool {
	_, err := os.Lstat(s.rebuilding())
	return err == nil
}

// hasRecords is false where there must have been a database and is none: there
// are blobs. One that is about to be made where there are none counts as there.
// A directory without anything in it, as where a file system was not mounted,
// is no database that is new.
func (s *Store) hasRecords(dir string) (bool, error) {
	there, err := kv.Exists(dir)
	if err != nil || there {
		return there, err
	}
	for _, a := range content.Algorithms() {
		names, err := os.ReadDir(s.blobs(a))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if len(names) > 0 {
			return false, nil
		}
	}
	return true, nil
}

func (s *Store) startRebuild() error {
	if s.isRebuilding() {
		return nil
	}
	f, err := s.disk.Create(s.rebuilding())
	if err != nil {
		return kind(err)
	}
	return kind(errors.Join(f.Close(), s.disk.SyncDir(s.cfg.Root)))
}

// endRebuild says that the records are there, and lets Collect go on.
func (s *Store) endRebuild() error {
	defer s.ring()
	if err := s.disk.Remove(s.rebuilding()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.disk.SyncDir(s.cfg.Root)
}

// restoreNewest makes the database of the newest backup that is whole, if there
// is one.
func (s *Store) restoreNewest(o kv.Options) error {
	names, err := s.backupFiles()
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
			s.log.Error("a backup is of no use", "path", name, "err", err)
			continue
		}
		if err != nil {
			return err
		}
		s.log.Warn("a backup takes the database's place", "path", name, "records", info.Rows)
		return errors.Join(s.disk.Rename(made.Dir, o.Dir), s.disk.SyncDir(s.cfg.Root))
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
		return info, kind(err)
	}
	d, err := os.Open(o.Dir)
	if err != nil {
		return info, err
	}
	return info, errors.Join(d.Sync(), d.Close())
}

// rebuild makes the records that the files tell of and the database does not
// know, and removes those whose bytes are gone: what is in a backup and was
// deleted since. Such a record cannot be told from one whose bytes were lost,
// and a blob that was deleted since, and whose file is still there with its
// note, from one that was written since: it is there again. It can be done
// twice.
func (s *Store) rebuild(ctx context.Context) (backup.Report, error) {
	var r backup.Report
	files, err := s.blobFiles()
	if err != nil {
		return r, err
	}
	gone, err := s.dropRecords(ctx, files)
	if err != nil {
		return r, err
	}
	if err := s.distrustIngests(ctx); err != nil {
		return r, err
	}
	made, nobodys, err := s.remakeAll(ctx, files)
	if err != nil {
		return r, err
	}
	if err := s.endRebuild(); err != nil {
		return r, err
	}
	for what, n := range map[string]int{
		"blobs got the record that their file tells of":                                    made,
		"blobs whose file tells nothing are in namespace " + s.cfg.Recovered + " from now": nobodys,
		"records were removed whose bytes are not there":                                   gone,
	} {
		if n > 0 {
			r.Changes = append(r.Changes, backup.Change{What: what, Count: int64(n)})
		}
	}
	slices.SortFunc(r.Changes, func(a, b backup.Change) int { return int(b.Count - a.Count) })
	s.log.Error("the records were rebuilt; nothing of it is collected before label "+rootLabel+" is removed, and gantryctl fsck content says whether the bytes are right",
		"made", made, "recovered", nobodys, "removed", gone)
	return r, nil
}

// dropRecords removes the records of blobs, and of trash, without a file. One
// whose file has another size stays, and counts as absent. Writers may be at
// work: each is looked at again under its lock.
func (s *Store) dropRecords(ctx context.Context, files map[digest.Digest]int64) (int, error) {
	suspects := make(map[digest.Digest]bool)
	look := func(family string) error {
		return s.eachBatch(kv.Key(family, ""), ctx.Err, func(_ *kv.Tx, key, _ []byte) error {
			d := digestOf(key)
			if _, there := files[d]; !there && content.CheckDigest(d) == nil {
				suspects[d] = true
			}
			return nil
		})
	}
	if err := errors.Join(look("have"), look("trash")); err != nil {
		return 0, err
	}
	gone := 0
	for d := range suspects {
		n, err := s.dropRecord(ctx, d)
		if err != nil {
			return gone, err
		}
		gone += n
	}
	return gone, nil
}

// dropRecord returns how many namespaces had a record of a blob whose bytes are
// gone.
func (s *Store) dropRecord(ctx context.Context, d digest.Digest) (gone int, err error) {
	defer s.lock(d)()
	if _, err := os.Lstat(s.path(d)); !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	err = s.db.Release(ctx, func(tx *kv.Tx) error {
		gone = 0
		err := tx.Delete(trashKey(d))
		for key := range tx.Scan(kv.Key("have", d.String(), ""), nil) {
			gone++
			err = errors.Join(err, tx.Delete(key), tx.Delete(blobKey(kv.Parts(key)[2], d)))
		}
		return err
	})
	return gone, err
}
