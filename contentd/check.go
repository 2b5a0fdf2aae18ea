package contentd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
)

const (
	// A check says how far it is after so much time or so many bytes.
	tellEvery      = time.Second
	tellEveryBytes = 64 << 20

	// checkBatch is how many rows a check reads in one transaction.
	checkBatch = 256
)

// Check implements [fsck.Checker]. It reads rows in batches and bytes without a
// lock; what it is about to change it looks at again, under the lock.
func (s *Store) Check(ctx context.Context, o fsck.Options) iter.Seq2[fsck.Item, error] {
	return func(yield func(fsck.Item, error) bool) {
		c := &checking{Store: s, ctx: ctx, options: o, yield: yield}
		if err := c.run(); err != nil && !c.enough {
			yield(fsck.Item{}, err)
		}
	}
}

// A checking is a check under way.
type checking struct {
	*Store
	ctx     context.Context
	options fsck.Options
	yield   func(fsck.Item, error) bool
	enough  bool // the caller has it

	only   map[digest.Digest]bool // nil is all
	files  map[digest.Digest]int64
	known  map[digest.Digest]int64 // size of what somebody has
	labels map[string][]fsck.Ref   // who has a label that names a digest; nil until it is asked for

	progress  fsck.Progress
	told      time.Time
	toldBytes int64
}

// errEnough ends a check whose caller has enough.
var errEnough = fmt.Errorf("the caller has enough: %w", context.Canceled)

func (c *checking) run() error {
	if err := c.options.Check(); err != nil {
		return err
	}
	for _, id := range c.options.Only {
		if err := content.CheckDigest(digest.Digest(id)); err != nil {
			return err
		}
		if c.only == nil {
			c.only = make(map[digest.Digest]bool)
		}
		c.only[digest.Digest(id)] = true
	}
	c.told = c.now()
	for _, step := range []func() error{c.checkDatabase, c.checkRecords, c.checkFiles, c.checkIngestFiles, c.checkBytes} {
		if err := step(); err != nil {
			return err
		}
	}
	return c.say(nil)
}

// checkDatabase has the database prove that no record is missing. If any is,
// nothing is mended: what seems to lack a record may have one.
func (c *checking) checkDatabase() error {
	if c.only != nil && !c.options.Repair {
		return nil
	}
	if err := c.checkAside(); err != nil {
		return err
	}
	err := c.kv.Verify(c.ctx)
	if errdefs.IsDataLoss(err) {
		c.options.Repair = false
		return c.say(&fsck.Finding{
			Severity: fsck.Loss, What: "database", Where: "db", Why: err.Error() + "; restore a backup, or restart contentd to have it rebuilt; before that nothing is mended",
		})
	}
	return err
}

// checkAside finds what was kept for people.
func (c *checking) checkAside() error {
	if c.only != nil {
		return nil
	}
	aside, err := c.keeper.Aside()
	if err != nil {
		return err
	}
	for _, name := range aside {
		if err := c.say(&fsck.Finding{
			Severity: fsck.Note, What: "aside", Where: name,
			Why: "a database that was damaged, and was made again; remove it when nobody wants to look at it any more",
		}); err != nil {
			return err
		}
	}
	return nil
}

// checkFiles compares the blobs that have a record with the files.
func (c *checking) checkFiles() error {
	for d := range c.only {
		_, has := c.known[d]
		if _, file := c.files[d]; !has && !file {
			return missing(d)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(c.known)) {
		if size, ok := c.files[d]; ok && size == c.known[d] {
			continue
		}
		if err := c.checkMissing(d, c.known[d]); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(c.files)) {
		if _, ok := c.known[d]; ok || !c.wants(d) {
			continue
		}
		if err := c.checkOrphan(d); err != nil {
			return err
		}
	}
	return c.goOn()
}

// checkMissing looks again, under the lock, at a record whose file is not whole.
func (c *checking) checkMissing(d digest.Digest, size int64) error {
	f, err := c.findMissing(d, size)
	if err != nil || f == nil {
		return err
	}
	delete(c.known, d) // it has no bytes to read
	return c.sayOf(d, f)
}

func (c *checking) findMissing(d digest.Digest, size int64) (*fsck.Finding, error) {
	defer c.lock(d)()
	if still, err := c.sizeIs(d, size); err != nil || !still {
		return nil, err
	}
	r, err := c.openBlob(d, size)
	if err == nil {
		if c.options.Repair {
			c.find(d)
		}
		return nil, r.Close()
	}
	f := &fsck.Finding{
		Severity: fsck.Loss, What: "missing", ID: d.String(), Where: c.path(d),
		Why: "it has a record, and " + err.Error() + "; write it again",
	}
	if in, _ := filepath.Glob(c.quarantineName(d) + "*"); len(in) > 0 {
		f.Where, f.Why = in[len(in)-1], errCorrupt.Error()+"; write it again"
	}
	if c.options.Repair {
		c.lose(d, err)
		f.Done = "counts as absent"
	}
	return f, nil
}

// sizeIs says whether somebody has the blob, of that size.
func (s *Store) sizeIs(d digest.Digest, size int64) (is bool, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for _, value := range tx.Scan(kv.Key("have", d.String(), ""), nil) {
			have, err := readHave(value)
			is = is || err == nil && have == size
		}
		return nil
	})
	return is, err
}

// checkOrphan looks again, under the lock, at a file that no record is about.
func (c *checking) checkOrphan(d digest.Digest) error {
	f, err := c.findOrphan(d)
	if err != nil || f == nil {
		return err
	}
	return c.say(f)
}

func (c *checking) findOrphan(d digest.Digest) (*fsck.Finding, error) {
	defer c.lock(d)()
	orphan := false
	look := func(tx *kv.Tx) error {
		trashed, err := present(tx, trashKey(d))
		orphan = !trashed && !had(tx, d)
		return err
	}
	if err := c.db.View(look); err != nil || !orphan {
		return nil, err
	}
	if _, err := os.Lstat(c.path(d)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it was collected meanwhile
	}
	f := &fsck.Finding{
		Severity: fsck.Waste, What: "orphan", ID: d.String(), Where: c.path(d), Why: "it is a file that no record is about",
	}
	if c.options.Repair {
		f.Done = "made trash"
		return f, c.db.Release(c.ctx, func(tx *kv.Tx) error { return c.trash(tx, d, c.files[d]) })
	}
	return f, nil
}

// wants says whether a digest is to be looked at.
func (c *checking) wants(d digest.Digest) bool { return c.only == nil || c.only[d] }

// sayOf yields a finding with those who count on the blob.
func (c *checking) sayOf(d digest.Digest, f *fsck.Finding) error {
	refs, err := c.refsOf(d)
	if err != nil {
		return err
	}
	f.Refs = refs
	return c.say(f)
}

// say yields a finding, or how far the check is.
func (c *checking) say(f *fsck.Finding) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	c.told, c.toldBytes = c.now(), c.progress.Bytes
	if f != nil && f.Severity == fsck.Loss {
		c.log.Error("fsck: "+f.What, "digest", f.ID, "where", f.Where, "why", f.Why, "done", f.Done)
	}
	if !c.yield(fsck.Item{Finding: f, Progress: c.progress}, nil) {
		c.enough = true
		return errEnough
	}
	return nil
}

// goOn is called between two pieces of work.
func (c *checking) goOn() error {
	if c.now().Sub(c.told) >= tellEvery || c.progress.Bytes-c.toldBytes >= tellEveryBytes {
		return c.say(nil)
	}
	return c.ctx.Err()
}

// refsOf returns who counts on a blob: namespaces that have it, leases, and
// blobs with a label that names it.
func (c *checking) refsOf(d digest.Digest) ([]fsck.Ref, error) {
	if err := c.readLabels(); err != nil {
		return nil, err
	}
	var refs []fsck.Ref
	err := c.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("have", d.String(), ""), nil) {
			ns := kv.Parts(key)[2]
			refs = append(refs, fsck.Ref{Namespace: ns, Kind: "record", ID: d.String()})
			leases, err := leasesOf(tx, ns, contentOf(d))
			if err != nil {
				return err
			}
			for _, m := range leases {
				refs = append(refs, fsck.Ref{Namespace: ns, Kind: "lease", ID: m.lease.ID})
			}
		}
		return nil
	})
	// What refers to what refers to it counts on it too: an index on a layer.
	seen := map[fsck.Ref]bool{}
	for next := c.labels[d.String()]; len(next) > 0 && len(refs) < fsck.RefsMax; {
		r := next[0]
		next = next[1:]
		if !seen[r] {
			seen[r] = true
			refs = append(refs, r)
			next = append(slices.Clone(next), c.labels[r.ID]...)
		}
	}
	return refs[:min(len(refs), fsck.RefsMax)], err
}

// refLabel begins the labels by which a blob keeps others.
const refLabel = "containerd.io/gc.ref.content"

// readLabels makes the map of labels, once, if anybody asks.
func (c *checking) readLabels() error {
	if c.labels != nil {
		return nil
	}
	c.labels = make(map[string][]fsck.Ref)
	return c.eachRow(kv.Key("blob", ""), func(_ *kv.Tx, key, value []byte) error {
		b, err := readBlob(key, value)
		if err != nil {
			return nil // found elsewhere
		}
		parts := kv.Parts(key)
		for k, v := range b.Labels {
			if k == refLabel || strings.HasPrefix(k, refLabel+".") || strings.HasPrefix(k, refLabel+"/") {
				c.labels[v] = append(c.labels[v], fsck.Ref{Namespace: parts[1], Kind: "label", ID: parts[2]})
			}
		}
		return nil
	})
}

// eachRow calls row for every key of a family, in transactions that are short.
func (c *checking) eachRow(prefix []byte, row func(tx *kv.Tx, key, value []byte) error) error {
	return c.eachBatch(prefix, c.goOn, row)
}

var (
	_ fsck.Checker  = (*Store)(nil)
	_ content.Meter = (*Store)(nil)
)
