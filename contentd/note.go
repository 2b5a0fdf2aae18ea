package contentd

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace"
)

// A note is what a blob's file says of a namespace that has the blob, so that
// the records can be made again from the files. It is an extended attribute, one
// for each namespace. That of the namespace which wrote the bytes is synced with
// them; others may be lost with the power, until the file system writes them by
// itself. Nobody reads a note but who has lost the records.
type note struct {
	Created int64             `json:"c"` // in nanoseconds, since 1970
	Labels  map[string]string `json:"l,omitempty"`
}

// notePrefix begins the name of the attribute; the namespace ends it.
const notePrefix = "user.gantry."

// annotate notes that a namespace has, or is about to have, the blob in a file.
// Without the note the blob is as good as with it, so long as there are records.
func (s *Store) annotate(path, ns string, created time.Time, labels map[string]string) {
	for _, n := range []note{{created.UnixNano(), labels}, {Created: created.UnixNano()}} {
		b, err := json.Marshal(n)
		if err == nil {
			err = s.disk.SetNote(path, notePrefix+ns, b)
		}
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
			// A file system has little room for attributes, and labels are
			// the larger part.
		default:
			s.unnoted.Do(func() {
				s.log.Warn("blobs cannot be given notes: without the database nobody knows whose they are", "err", err)
			})
			return
		}
	}
}

// noteHolders notes, in the file of an ingest that is about to be a blob's, every
// other namespace that has the blob: the file that said so is replaced, or was
// lost. It is called with the digest's lock.
func (w *writer) noteHolders(d digest.Digest) error {
	holders := make(map[string]blob)
	if err := w.c.db.View(func(tx *kv.Tx) error {
		for _, ns := range holdersOf(tx, d) {
			var b blob
			// One that cannot be read is noted without its labels.
			if err := tx.GetJSON(blobKey(ns, d), &b); err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
				return err
			}
			holders[ns] = b
		}
		return nil
	}); err != nil {
		return err
	}
	delete(holders, w.c.scope.Name)
	if len(holders) == 0 {
		return nil
	}
	for ns, b := range holders {
		w.c.annotate(w.c.ingestPath(w.name), ns, b.Created, b.Labels)
	}
	w.dirty = true
	return w.sync()
}

// unannotate takes the note away of a namespace that has not the blob any more.
func (s *Store) unannotate(d digest.Digest, ns string) {
	defer s.lock(d)()
	again := true
	if err := s.db.View(func(tx *kv.Tx) (err error) {
		again, err = present(tx, blobKey(ns, d))
		return err
	}); err != nil || again {
		return
	}
	if err := s.disk.RemoveNote(s.path(d), notePrefix+ns); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODATA) {
		s.log.Debug("a note stays", "digest", d, "namespace", ns, "err", err)
	}
}

// notesOf reads the notes of a file, by namespace.
func notesOf(path string) map[string]note {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return nil
	}
	notes := make(map[string]note)
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		ns, ours := strings.CutPrefix(name, notePrefix)
		if !ours || (namespace.Scope{Name: ns}).Check() != nil {
			continue
		}
		value := make([]byte, 64<<10)
		var v note
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil || json.Unmarshal(value[:n], &v) != nil {
			v = note{} // it has the blob all the same
		}
		if label.Check(v.Labels) != nil {
			v.Labels = nil
		}
		notes[ns] = v
	}
	return notes
}

func (osDisk) SetNote(path, name string, value []byte) error {
	err := unix.Lsetxattr(path, name, value, 0)
	if errors.Is(err, unix.EACCES) {
		// Its owner may, while it may be written to.
		err = errors.Join(os.Chmod(path, ingestMode), unix.Lsetxattr(path, name, value, 0), os.Chmod(path, blobMode))
	}
	return err
}

func (osDisk) RemoveNote(path, name string) error {
	err := unix.Lremovexattr(path, name)
	if errors.Is(err, unix.EACCES) {
		err = errors.Join(os.Chmod(path, ingestMode), unix.Lremovexattr(path, name), os.Chmod(path, blobMode))
	}
	return err
}
