package contentd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
)

// Files implements [content.FileStores].
func (s *Store) Files(scope namespace.Scope) content.Files { return &scoped{s, scope} }

// Name is what this store is called among all of this machine, for as long as it
// runs: whoever finds a socket can ask whether it is this store's.
func (s *Store) Name() string { return s.name }

// nameOf names a store by its directory.
func nameOf(root string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x-%x", st.Dev, st.Ino), nil
}

var (
	_ content.FileStores = (*Store)(nil)
	_ content.Files      = (*scoped)(nil)
	_ content.FileWriter = (*fileWriter)(nil)
)

// OpenFile implements [content.Files]. What is open to read here nobody else may
// open to write: a blob is 0444 and this user's.
func (c *scoped) OpenFile(ctx context.Context, d digest.Digest) (*os.File, error) {
	r, err := c.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return r.(*reader).f, nil
}

// OpenIngest implements [content.Files].
func (c *scoped) OpenIngest(ctx context.Context, ref string) (*os.File, content.Status, error) {
	st, err := c.Status(ctx, ref)
	if err != nil {
		return nil, st, err
	}
	name, err := c.fileOf(ref)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(c.ingestPath(name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("reference %s: %w", ref, errdefs.ErrNotFound) // committed or aborted since
	}
	return f, st, kind(err)
}

// fileOf returns the file of an ingest, which may have no record yet.
func (c *scoped) fileOf(ref string) (string, error) {
	if w := c.writerOf(ref); w != nil {
		if _, ok := w.current(); ok {
			return w.name, nil // which was there before it was current
		}
	}
	var rec ingest
	err := c.db.View(func(tx *kv.Tx) (err error) {
		rec, err = getIngest(tx, ingestKey(c.scope.Name, ref))
		return err
	})
	return rec.File, err
}

// FileWriter implements [content.Files].
func (c *scoped) FileWriter(ctx context.Context, o content.WriterOptions) (content.FileWriter, error) {
	if c.lendless != nil {
		return nil, fmt.Errorf("files to write: %v: %w", c.lendless, errdefs.ErrNotImplemented)
	}
	w := &writer{lent: true}
	if err := c.start(ctx, w, o); err != nil {
		return nil, err
	}
	return &fileWriter{w}, nil
}

// A fileWriter is a writer that lends its file. The record of such an ingest says
// so before the file is lent (see [ingest].Lent), and what this writer knows of
// the bytes is never taken for true.
type fileWriter struct{ w *writer }

// File implements [content.FileWriter].
func (l *fileWriter) File(context.Context) (*os.File, error) {
	borrowed, err := l.w.usable()
	if err != nil {
		return nil, err
	}
	if borrowed {
		if err := l.w.own(l.w.status.Offset); err != nil {
			return nil, err
		}
		l.w.hashed = l.w.status.Offset
	}
	l.w.dirty = true
	f, err := os.OpenFile(l.w.c.ingestPath(l.w.name), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, l.w.gone()
	}
	return f, kind(err)
}

// Borrows implements [content.FileWriter].
func (l *fileWriter) Borrows() bool {
	borrowed, _ := l.w.usable()
	return borrowed
}

// Status implements [content.FileWriter].
func (l *fileWriter) Status(ctx context.Context) (content.Status, error) {
	if err := l.w.refresh(); err != nil {
		return content.Status{}, err
	}
	// Who writes by itself learns here that the disk is nearly full.
	if err := l.w.c.room(0); err != nil {
		return content.Status{}, err
	}
	return l.w.Status(ctx)
}

// Digest implements [content.FileWriter].
func (l *fileWriter) Digest(ctx context.Context) (digest.Digest, error) {
	w := l.w
	if w.sum != "" {
		return w.sum, nil
	}
	if err := w.refresh(); err != nil {
		return "", err
	}
	if borrowed, err := w.usable(); err != nil || borrowed {
		return w.options.Expected, err
	}
	if err := w.catchUp(ctx); err != nil {
		return "", err
	}
	return digest.NewDigest(w.algorithm, w.hash), nil
}

// Truncate implements [content.FileWriter].
func (l *fileWriter) Truncate(ctx context.Context, size int64) error {
	if err := l.w.refresh(); err != nil {
		return err
	}
	if err := l.w.Truncate(ctx, size); err != nil {
		return err
	}
	l.w.hashed = min(l.w.hashed, l.w.status.Offset)
	return nil
}

// Commit implements [content.FileWriter].
func (l *fileWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	return l.w.Commit(ctx, size, expected, labels)
}

// Close implements [content.FileWriter].
func (l *fileWriter) Close() error {
	// What was written last counts; that it cannot be seen is for resuming.
	_ = l.w.refresh()
	return l.w.Close()
}

// refresh makes the status of a writer what its file says.
func (w *writer) refresh() error {
	borrowed, err := w.usable()
	if err != nil || borrowed || w.file == nil {
		return err
	}
	return w.see()
}

func (w *writer) see() error {
	fi, err := w.file.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != w.status.Offset {
		w.fetch.At(fi.Size())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = seen(w.status, fi)
	return nil
}

// seen is the status of an ingest whose file is as fi says. The clock of a file
// system goes by ticks, and may be behind.
func seen(st content.Status, fi fs.FileInfo) content.Status {
	st.Offset = fi.Size()
	if t := fi.ModTime().UTC(); t.After(st.UpdatedAt) {
		st.UpdatedAt = t
	}
	return st
}

// lentStatus is the status of an ingest for somebody who is not its writer.
func (w *writer) lentStatus(st content.Status) content.Status {
	if fi, err := os.Lstat(w.c.ingestPath(w.name)); err == nil {
		return seen(st, fi)
	}
	return st
}

// catchUp brings the hash to the end of the file. What was hashed before may
// have been changed since: the sum is what the writer deserves, and Commit makes
// one of its own.
func (w *writer) catchUp(ctx context.Context) error {
	if w.hashed > w.status.Offset {
		w.hashed = 0
		w.hash.Reset()
	}
	if w.hashed == w.status.Offset {
		return nil
	}
	if err := wholeFile(w.c.ingestPath(w.name)); err != nil {
		return w.stillWritten(err)
	}
	if err := hashOn(ctx, w.hash, w.file, w.hashed, w.status.Offset); err != nil {
		w.hashed = 0
		w.hash.Reset()
		return err
	}
	w.hashed = w.status.Offset
	return nil
}

// reclaim takes back the file that was lent, for good, and hashes it. The order
// is the promise: no descriptor of our own, a lease, the bytes, and the lease
// still held. See seal.
func (w *writer) reclaim(ctx context.Context, claim content.Claim) error {
	path := w.c.ingestPath(w.name)
	w.closeFile()
	var held func() error
	err := w.c.patiently(ctx, func() (err error) {
		w.file, held, err = w.c.disk.Seal(path)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return w.gone()
	case err != nil:
		return w.unclaimed(path, err)
	}
	if err := w.see(); err != nil {
		return err
	}
	if claim.Size != 0 && claim.Size != w.status.Offset {
		return claim.Check(w.options.Ref, w.status.Offset, claim.Expected)
	}
	if err := wholeFile(path); err != nil {
		return w.stillWritten(err)
	}
	if claim.Expected != "" {
		w.algorithm = claim.Expected.Algorithm()
	}
	w.hash, w.hashed = content.NewHash(w.algorithm), 0
	if err := hashOn(ctx, w.hash, w.file, 0, w.status.Offset); err != nil {
		return err
	}
	if err := held(); err != nil {
		return w.stillWritten(err)
	}
	w.sum = digest.NewDigest(w.algorithm, w.hash)
	return nil
}

// unclaimed is the error for a file that was not sealed. It is opened again, so
// that what it has is kept.
func (w *writer) unclaimed(path string, err error) error {
	err = w.stillWritten(err)
	f, e := w.c.disk.Reopen(path)
	if e != nil {
		return errors.Join(err, e)
	}
	w.file = f
	return err
}

func (w *writer) stillWritten(err error) error {
	if errors.Is(err, errWritable) {
		err = fmt.Errorf("%v: %w", err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("ref %s: %w", w.options.Ref, kind(err))
}

// saveLent notes when an ingest was left whose file was lent. No hash is saved:
// its bytes may change.
func (w *writer) saveLent() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), saveTime)
	defer cancel()
	if err := w.save(ctx, nil); err != nil {
		w.c.log.Warn("an ingest was kept, and not when", "ref", w.options.Ref, "err", err)
	}
}

// returned says whether the file of an ingest that was lent can be gone on with:
// nobody can write it any more, and it has no holes. One that never was on the
// disk can.
func (w *writer) returned(rec ingest) (bool, error) {
	path := w.c.ingestPath(rec.File)
	err := w.c.patiently(w.ctx, func() error {
		f, err := seal(path)
		if err == nil {
			f.Close()
		}
		return err
	})
	if err == nil {
		err = wholeFile(path)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return true, nil
	case errors.Is(err, errWritable), errors.Is(err, errdefs.ErrFailedPrecondition):
		w.c.log.Warn("an ingest starts over: its file was lent and did not come back as it should",
			"ref", w.options.Ref, "err", err)
		return false, nil
	}
	return false, kind(err)
}

// distrustIngests makes every ingest one whose file was lent: what a copy of the
// records says of its bytes was so once.
func (s *Store) distrustIngests(ctx context.Context) error {
	var keys [][]byte
	if err := s.eachBatch(kv.Key("ingest", ""), ctx.Err, func(_ *kv.Tx, key, _ []byte) error {
		keys = append(keys, key)
		return nil
	}); err != nil {
		return err
	}
	for len(keys) > 0 {
		const beside = 900 // a row is longer than its key
		n := 0
		for room := txRoom; n < len(keys); n++ {
			if room -= len(keys[n]) + beside; room < 0 {
				break
			}
		}
		batch := keys[:n]
		keys = keys[n:]
		if err := s.db.Update(ctx, func(tx *kv.Tx) error {
			for _, key := range batch {
				rec, err := getIngest(tx, key)
				if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrDataLoss) {
					continue // over, or waiting for its Abort
				}
				if err != nil {
					return err
				}
				rec.Lent, rec.Saved = true, nil
				if err := tx.PutJSON(key, rec); err != nil {
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
