package contentd

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/keep"
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

// openRecords opens the database, or makes it again.
func (s *Store) openRecords() (err error) {
	s.keeper, err = keep.Open(keep.Options{
		Root:    s.cfg.Root,
		Records: options(s.cfg, s.log),
		Disk:    marks{s.disk},
		Now:     func() time.Time { return s.now() },
		Every:   s.cfg.backupEvery(),
		Objects: s.hasBlobs,
		Room:    func() error { return s.room(0) },
	})
	return kind(err)
}

// marks are the files of package keep.
type marks struct{ disk }

// Touch implements [keep.Disk].
func (m marks) Touch(name string) error {
	f, err := m.Create(name)
	if err != nil {
		return err
	}
	return f.Close()
}

// hasBlobs says whether there are any files of blobs.
func (s *Store) hasBlobs() (bool, error) {
	for _, a := range content.Algorithms() {
		names, err := os.ReadDir(s.blobs(a))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if len(names) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// KeepBackups writes backups of the records. It is a work of the daemon's.
func (s *Store) KeepBackups(ctx context.Context) error { return s.keeper.Work(ctx) }

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
	if err := s.keeper.Settle(); err != nil {
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
