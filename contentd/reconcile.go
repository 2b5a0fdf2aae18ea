package contentd

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
)

// reconcile makes the directories and compares what is in them with what the
// records say. It calls nobody and reads no blob, so that a start is soon over.
func (s *Store) reconcile() error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	if s.keeper.Incomplete() {
		if _, err := s.rebuild(context.Background()); err != nil {
			return err
		}
	}
	if err := s.reconcileIngests(); err != nil {
		return err
	}
	return s.reconcileBlobs()
}

// makeDirs makes every directory once, durably, so that a commit has only its
// own name to make so.
func (s *Store) makeDirs() error {
	blobs := filepath.Join(s.cfg.Root, "blobs")
	for _, dir := range append([]string{s.cfg.Root, blobs, s.quarantined()}, s.dirs()...) {
		if err := s.disk.MkdirAll(dir); err != nil {
			return err
		}
	}
	if err := errors.Join(s.disk.SyncDir(blobs), s.disk.SyncDir(s.cfg.Root)); err != nil {
		return err
	}
	// Somebody else made what is above, and may have done so for this user to
	// use and not to read.
	if err := s.disk.SyncDir(filepath.Dir(s.cfg.Root)); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// reconcileIngests removes the files that no record has.
func (s *Store) reconcileIngests() error {
	known := make(map[string]bool)
	if err := s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("ingest", ""), nil) {
			rec, err := readIngest(key, value)
			if err != nil {
				s.log.Error("the record of an ingest is damaged", "err", err)
				continue
			}
			known[rec.File] = true
		}
		return nil
	}); err != nil {
		return err
	}
	names, err := os.ReadDir(s.ingests())
	if err != nil {
		return err
	}
	removed := 0
	for _, n := range names {
		switch {
		case known[n.Name()]:
		case !isFile(n.Name()):
			s.log.Warn("a file that is not ours is left alone", "path", s.ingestPath(n.Name()))
		default:
			s.removeIngest(n.Name())
			removed++
		}
	}
	if removed > 0 {
		s.log.Info("removed unfinished ingests", "count", removed)
	}
	return nil
}

// reconcileBlobs finds records without a whole file, which count as absent, and
// files without a record, which become trash.
func (s *Store) reconcileBlobs() error {
	files, err := s.blobFiles()
	if err != nil {
		return err
	}
	known := make(map[digest.Digest]bool)
	var suspects []digest.Digest
	if err := s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key("have", ""), nil) {
			d := digestOf(key)
			if d == "" || known[d] {
				continue
			}
			known[d] = true
			want, err := readHave(value)
			if size, ok := files[d]; err != nil || !ok || size != want {
				suspects = append(suspects, d)
			}
		}
		for key := range tx.Scan(kv.Key("trash", ""), nil) {
			known[digestOf(key)] = true
		}
		return nil
	}); err != nil {
		return err
	}
	for _, d := range suspects {
		if err := s.reconcileBlob(d); err != nil {
			return err
		}
	}
	for d := range known {
		delete(files, d)
	}
	if len(files) == 0 {
		return nil
	}
	s.log.Info("found blobs without a record: they are trash", "count", len(files))
	if err := s.trashAll(files); err != nil {
		s.log.Warn("blobs without a record stay until the next start", "err", err)
	}
	return nil
}

// reconcileBlob loses a blob that has a record and no whole file. It looks at
// both again, under the lock: after a restore writers are at work.
func (s *Store) reconcileBlob(d digest.Digest) error {
	defer s.lock(d)()
	var size int64
	err := s.db.View(func(tx *kv.Tx) (err error) {
		size, err = sizeOf(tx, d)
		return err
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil && !errors.Is(err, errdefs.ErrDataLoss) {
		return err
	}
	if fi, e := os.Lstat(s.path(d)); err == nil && (e != nil || fi.Size() != size) {
		err = errNotWhole
	}
	if err != nil {
		s.lose(d, err)
	}
	return nil
}

// blobFiles returns the size of every blob that has a file.
func (s *Store) blobFiles() (map[digest.Digest]int64, error) {
	files := make(map[digest.Digest]int64)
	for _, a := range content.Algorithms() {
		names, err := os.ReadDir(s.blobs(a))
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			d := digest.NewDigestFromEncoded(a, n.Name())
			if content.CheckDigest(d) != nil || !n.Type().IsRegular() {
				s.log.Warn("a file that is not ours is left alone", "path", filepath.Join(s.blobs(a), n.Name()))
				continue
			}
			fi, err := n.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was collected meanwhile
			}
			if err != nil {
				return nil, err
			}
			files[d] = fi.Size()
		}
	}
	return files, nil
}

func (s *Store) trashAll(files map[digest.Digest]int64) error {
	for all := range slices.Chunk(slices.Collect(maps.Keys(files)), trashBatch) {
		if err := s.db.Release(context.Background(), func(tx *kv.Tx) error {
			for _, d := range all {
				if err := s.trash(tx, d, files[d]); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
