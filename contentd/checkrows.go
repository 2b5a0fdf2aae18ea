package contentd

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// A suspect is a row that does not agree with another. What is wrong with it is
// found in a view, and found again in the transaction that mends it.
type suspect struct {
	key   []byte
	judge judge
}

// A judge says what is wrong with a row, or nil, and how it is mended.
type judge func(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error)

// checkRecords compares the rows of every family with those of the others.
func (c *checking) checkRecords() (err error) {
	c.known = make(map[digest.Digest]int64)
	// The files first: what is committed meanwhile is looked at again.
	if c.files, err = c.blobFiles(); err != nil {
		return err
	}
	for _, family := range []struct {
		name  string
		judge judge
	}{
		{"blob", c.judgeBlob},
		{"have", c.judgeHave},
		{"trash", c.judgeTrash},
		{"ingest", c.judgeIngest},
		{"lease", c.judgeMember},
		{"member", c.judgeMember},
	} {
		var found []suspect
		if err := c.eachRow(kv.Key(family.name, ""), func(tx *kv.Tx, key, value []byte) error {
			c.progress.Records++
			if f, _ := family.judge(tx, key, value); f != nil {
				found = append(found, suspect{key, family.judge})
			}
			return nil
		}); err != nil {
			return err
		}
		for _, x := range found {
			if err := c.mend(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// mend judges a row once more, and makes it right if that is wanted.
func (c *checking) mend(x suspect) error {
	var f *fsck.Finding
	look := func(tx *kv.Tx, mending bool) error {
		f = nil
		value, err := tx.Get(x.key)
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		var mend func() error
		if f, mend = x.judge(tx, x.key, value); f == nil || !mending || mend == nil {
			return nil
		}
		return mend()
	}
	var err error
	if c.options.Repair {
		err = c.db.Touch(c.ctx, func(tx *kv.Tx) error { return look(tx, true) })
	} else {
		err = c.db.View(func(tx *kv.Tx) error { return look(tx, false) })
	}
	if err != nil || f == nil {
		return err
	}
	f.Where = fmt.Sprintf("record %q", kv.Parts(x.key))
	if !c.options.Repair {
		f.Done = ""
	}
	return c.say(f)
}

// parts takes a key apart that has n of them.
func parts(key []byte, n int) ([]string, *fsck.Finding) {
	p := kv.Parts(key)
	if len(p) == n {
		return p, nil
	}
	return nil, &fsck.Finding{Severity: fsck.Note, What: "record", Why: fmt.Sprintf("its key has %d parts, not %d", len(p), n)}
}

// readBlob is [errdefs.ErrDataLoss] for a record that is damaged.
func readBlob(key, value []byte) (blob, error) {
	var b blob
	if err := b.UnmarshalJSON(value); err != nil || b.Size < 0 {
		return b, fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
	}
	return b, nil
}

// judgeBlob wants a record that can be read, and its row of have.
func (c *checking) judgeBlob(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error) {
	p, odd := parts(key, 3)
	if odd != nil {
		return odd, nil
	}
	ns, d := p[1], digest.Digest(p[2])
	if !c.wants(d) {
		return nil, nil
	}
	if content.CheckDigest(d) != nil {
		return &fsck.Finding{Severity: fsck.Waste, What: "record", ID: p[2], Why: "its digest is none", Done: "removed"},
			func() error { return tx.Delete(key) }
	}
	b, err := readBlob(key, value)
	size, there := c.files[d]
	if err != nil {
		f := &fsck.Finding{Severity: fsck.Loss, What: "record", ID: p[2], Why: "it cannot be read, and its labels are lost"}
		if !there {
			return f, nil
		}
		f.Done = "written anew, with what the file says"
		return f, func() error { return c.rewrite(tx, ns, d, size) }
	}
	have, err := tx.Get(haveKey(d, ns))
	if err == nil {
		if n, err := readHave(have); err == nil && n == b.Size {
			return nil, nil
		}
	}
	return &fsck.Finding{Severity: fsck.Loss, What: "record", ID: p[2], Why: "the record of who has it is missing, or says another size", Done: "written anew"},
		func() error {
			return errors.Join(tx.PutJSON(haveKey(d, ns), b.Size), tx.Delete(trashKey(d)))
		}
}

// rewrite makes the record of a blob from its file.
func (s *Store) rewrite(tx *kv.Tx, ns string, d digest.Digest, size int64) error {
	now := s.now()
	b := blob{Size: size, Created: now, Updated: now}
	if fi, err := os.Lstat(s.path(d)); err == nil {
		b.Created = fi.ModTime().UTC()
	}
	return errors.Join(tx.PutJSON(blobKey(ns, d), b), tx.PutJSON(haveKey(d, ns), size), tx.Delete(trashKey(d)))
}

// judgeHave wants the record of the blob in the namespace that has it.
func (c *checking) judgeHave(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error) {
	p, odd := parts(key, 3)
	if odd != nil {
		return odd, nil
	}
	d, ns := digest.Digest(p[1]), p[2]
	if !c.wants(d) {
		return nil, nil
	}
	size, err := readHave(value)
	if err == nil && size < 0 {
		err = errdefs.ErrDataLoss
	}
	rec, e := tx.Get(blobKey(ns, d))
	switch {
	case content.CheckDigest(d) != nil:
		return &fsck.Finding{Severity: fsck.Waste, What: "record", ID: p[1], Why: "its digest is none", Done: "removed"},
			func() error { return tx.Delete(key) }
	case e != nil && !errors.Is(e, errdefs.ErrNotFound):
		return &fsck.Finding{Severity: fsck.Loss, What: "record", ID: p[1], Why: "the record of the blob cannot be read: " + e.Error()}, nil
	case e != nil:
		return &fsck.Finding{Severity: fsck.Waste, What: "record", ID: p[1], Why: "namespace " + strconv.Quote(ns) + " has no record of the blob", Done: "removed"},
			func() error { return errors.Join(tx.Delete(key), c.trash(tx, d, max(size, 0))) }
	}
	if b, bad := readBlob(key, rec); bad == nil {
		size = b.Size
	}
	if err != nil {
		return &fsck.Finding{Severity: fsck.Note, What: "record", ID: p[1], Why: "the size cannot be read", Done: "written anew"},
			func() error { return tx.PutJSON(key, size) }
	}
	c.known[d] = size
	return nil, nil
}

// judgeTrash wants nobody to have what is trash.
func (c *checking) judgeTrash(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error) {
	p, odd := parts(key, 2)
	if odd != nil {
		return odd, nil
	}
	d := digest.Digest(p[1])
	var t trash
	switch {
	case !c.wants(d):
		return nil, nil
	case had(tx, d):
		return &fsck.Finding{Severity: fsck.Note, What: "record", ID: p[1], Why: "it is trash, and somebody has it", Done: "removed"},
			func() error { return tx.Delete(key) }
	case content.CheckDigest(d) != nil:
		return &fsck.Finding{Severity: fsck.Waste, What: "record", ID: p[1], Why: "its digest is none", Done: "removed"},
			func() error { return tx.Delete(key) }
	case json.Unmarshal(value, &t) != nil:
		return &fsck.Finding{Severity: fsck.Note, What: "record", ID: p[1], Why: "it cannot be read", Done: "written anew"},
			func() error { return tx.PutJSON(key, trash{Since: c.now(), Size: c.files[d]}) }
	}
	return nil, nil
}

// judgeIngest wants a record that can be read.
func (c *checking) judgeIngest(tx *kv.Tx, key, value []byte) (*fsck.Finding, func() error) {
	p, odd := parts(key, 3)
	if odd != nil {
		return odd, nil
	}
	if _, err := readIngest(key, value); err == nil || c.only != nil {
		return nil, nil
	}
	return &fsck.Finding{Severity: fsck.Waste, What: "record", Why: "the ingest cannot be read, nor resumed", Done: "removed"},
		func() error { return errors.Join(tx.Delete(key), leave(tx, p[1], ingestOf(p[2]), "")) }
}

// judgeMember wants both rows of a membership. Half of one is completed: that
// keeps an object for too long, and not too short.
func (c *checking) judgeMember(tx *kv.Tx, key, _ []byte) (*fsck.Finding, func() error) {
	p, odd := parts(key, 6)
	if odd != nil {
		return odd, nil
	}
	m, generation := membership{ns: p[1]}, p[3]
	if p[0] == "lease" {
		m.lease.ID, m.of = p[2], lease.Resource{Type: p[4], ID: p[5]}
	} else {
		m.of, m.lease.ID, generation = lease.Resource{Type: p[2], ID: p[3]}, p[4], p[5]
	}
	if !c.wants(digest.Digest(m.of.ID)) {
		return nil, nil
	}
	var err error
	if m.lease.Generation, err = strconv.ParseUint(generation, 16, 64); err != nil || len(generation) != 16 {
		return &fsck.Finding{Severity: fsck.Waste, What: "record", ID: m.of.ID, Why: "its generation is none", Done: "removed"},
			func() error { return tx.Delete(key) }
	}
	for _, k := range m.keys() {
		if there, err := present(tx, k); err == nil && !there {
			return &fsck.Finding{
				Severity: fsck.Loss, What: "record", ID: m.of.ID, Why: "it is half of a membership in lease " + strconv.Quote(m.lease.ID), Done: "completed",
			}, func() error { return m.put(tx) }
		}
	}
	return nil, nil
}

// checkIngestFiles finds what was left in ingest/. A file that was just made may
// have no record yet, nor a writer, so that only what is older than any ingest
// may become is left.
func (c *checking) checkIngestFiles() error {
	if c.only != nil {
		return nil
	}
	known := make(map[string]bool)
	names, err := os.ReadDir(c.ingests())
	if err != nil {
		return err
	}
	// Who writes, and then the records: an ingest that is pending has one when
	// it has no writer any more.
	c.Store.mu.Lock()
	writers := slices.Collect(maps.Values(c.writers))
	c.Store.mu.Unlock()
	for _, w := range writers {
		if _, ok := w.current(); ok {
			known[w.name] = true
		}
	}
	if err := c.eachRow(kv.Key("ingest", ""), func(_ *kv.Tx, key, value []byte) error {
		if rec, err := readIngest(key, value); err == nil {
			known[rec.File] = true
		}
		return nil
	}); err != nil {
		return err
	}
	for _, n := range names {
		fi, err := n.Info()
		if err != nil || known[n.Name()] || !isFile(n.Name()) || c.now().Sub(fi.ModTime()) < c.cfg.ingestAge() {
			continue
		}
		f := &fsck.Finding{
			Severity: fsck.Waste, What: "orphan", Where: filepath.Join(c.ingests(), n.Name()),
			Why: fmt.Sprintf("%d bytes that belong to no ingest", fi.Size()),
		}
		if c.options.Repair {
			f.Done = "removed"
			c.removeIngest(n.Name())
		}
		if err := c.say(f); err != nil {
			return err
		}
	}
	return nil
}
