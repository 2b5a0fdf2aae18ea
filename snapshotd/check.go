package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
)

var _ fsck.Checker = (*Store)(nil)

// tellEvery is how often a check says how far it is.
const tellEvery = time.Second

// Check implements [fsck.Checker]. An object is a snapshot, whose id is
// <snapshotter>/<namespace>/<name>, or a tree that nobody claims, whose id is
// <snapshotter>/<id>. A tree is compared with the sum that its commit kept, and
// no file of it is read. A deep check extracts the layer that it was made from
// once more, if the namespace has its blob, and compares the two, files and all.
func (s *Store) Check(ctx context.Context, o fsck.Options) iter.Seq2[fsck.Item, error] {
	return func(yield func(fsck.Item, error) bool) {
		c := &checking{Store: s, ctx: ctx, options: o, yield: yield, told: time.Now(), found: make(map[string]bool)}
		c.deep.pace = fsck.NewPace(o.Rate)
		for _, id := range o.Only {
			if c.only == nil {
				c.only = make(map[string]bool)
			}
			c.only[id] = true
		}
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

	only  map[string]bool // nil is all
	found map[string]bool // of them
	kept  []kept          // trees of snapshots

	deep     deep
	read     atomic.Int64 // bytes of layers
	progress fsck.Progress
	told     time.Time
}

// errEnough ends a check whose caller has enough.
var errEnough = fmt.Errorf("the caller has enough: %w", context.Canceled)

func (c *checking) run() error {
	if err := c.options.Check(); err != nil {
		return err
	}
	for id := range c.only {
		if of, name, _ := strings.Cut(id, "/"); name == "" || ident.Check(of) != nil {
			return fmt.Errorf("snapshot %q: want SNAPSHOTTER/NAMESPACE/NAME: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	for _, step := range []func() error{c.checkDatabase, c.checkRows, c.checkTrash, c.checkTrees, c.checkSums, c.sayUncompared} {
		if err := step(); err != nil {
			return err
		}
	}
	for id := range c.only {
		if !c.found[id] {
			return fmt.Errorf("snapshot %q: %w", id, errdefs.ErrNotFound)
		}
	}
	return c.say(nil)
}

// wants says whether an object is to be looked at.
func (c *checking) wants(id string) bool {
	if c.only[id] {
		c.found[id] = true
	}
	return c.only == nil || c.only[id]
}

// checkDatabase has the database prove that no record is missing. If any is,
// nothing is mended: what seems to lack a record may have one.
func (c *checking) checkDatabase() error {
	aside, err := c.keeper.Aside()
	if err != nil || c.only != nil && !c.options.Repair {
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
	err = c.kv.Verify(c.ctx)
	if errdefs.IsDataLoss(err) {
		c.options.Repair = false
		return c.say(&fsck.Finding{
			Severity: fsck.Loss, What: "database", Where: "db",
			Why: err.Error() + "; restore a backup, or restart snapshotd to have it rebuilt; before that nothing is mended",
		})
	}
	return err
}

// checkTrees finds the trees without a record.
func (c *checking) checkTrees() error {
	before := c.last.Load() // what is newer may have no record yet
	all, err := c.Store.trees(c.ctx)
	if err != nil {
		return err
	}
	suspects := make(map[uint64]string)
	for id, snapshotter := range all {
		what := fmt.Sprintf("%s/%d", snapshotter, id)
		if id > before || c.isMaking(id) || !c.wants(what) {
			continue
		}
		f, err := c.checkTree(id, snapshotter, what, false)
		if err != nil {
			return err
		}
		if f != nil {
			suspects[id] = snapshotter
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	// What was removed meanwhile has no row any more, and no tree.
	if all, err = c.Store.trees(c.ctx); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(suspects)) {
		if all[id] == "" {
			continue
		}
		f, err := c.checkTree(id, all[id], fmt.Sprintf("%s/%d", all[id], id), c.options.Repair)
		if err == nil && f != nil {
			err = c.say(f)
		}
		if err := errors.Join(err, c.goOn()); err != nil {
			return err
		}
	}
	return nil
}

// checkTree says what is wrong with a tree that is no snapshot's, and makes it
// trash if that is wanted: one that nobody claims only if it is named, because a
// container may run on it.
func (c *checking) checkTree(id uint64, snapshotter, what string, mending bool) (f *fsck.Finding, err error) {
	bury := func(tx *kv.Tx) error {
		return errors.Join(tx.Delete(unclaimedKey(id)), tx.PutJSON(trashKey(id), trash{Since: time.Now().UTC(), Snapshotter: snapshotter}))
	}
	look := func(tx *kv.Tx) error {
		f = nil
		for _, key := range [][]byte{dirKey(id), trashKey(id)} {
			if there, err := isRow(tx, key); there || err != nil {
				return err
			}
		}
		if f, err = standing(tx, id, what); err != nil {
			return err
		}
		if mending && (f.What == "orphan" || c.only[what]) {
			f.Done = "made trash"
			return errors.Join(tx.Delete(quarantineKey(id)), bury(tx))
		}
		return nil
	}
	if mending {
		err = c.db.Release(c.ctx, look)
		c.ring()
		return f, err
	}
	err = c.db.View(look)
	return f, err
}

// standing is what is known of a tree that is no snapshot's and no trash.
func standing(tx *kv.Tx, id uint64, what string) (*fsck.Finding, error) {
	var u unclaimed
	switch err := tx.GetJSON(quarantineKey(id), &u); {
	case err == nil:
		return &fsck.Finding{Severity: fsck.Note, What: "quarantine", ID: what, Why: u.Why + "; a container may still run on it: name it to have it removed"}, nil
	case !errors.Is(err, errdefs.ErrNotFound):
		return nil, err
	}
	switch err := tx.GetJSON(unclaimedKey(id), &u); {
	case err == nil:
		return &fsck.Finding{Severity: fsck.Waste, What: "unclaimed", ID: what, Why: u.Why + "; a container may run on it: name it to have it removed"}, nil
	case !errors.Is(err, errdefs.ErrNotFound):
		return nil, err
	}
	return &fsck.Finding{Severity: fsck.Waste, What: "orphan", ID: what, Why: "it is a tree that no record is about"}, nil
}

func isRow(tx *kv.Tx, key []byte) (bool, error) {
	_, err := tx.Get(key)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// checkSums compares committed trees with what their commits saw.
func (c *checking) checkSums() error {
	for _, k := range c.kept {
		if c.reads(k) {
			c.progress.ObjectsTotal++
			c.progress.BytesTotal += k.origin.Layers[0].Size
		}
	}
	for _, k := range c.kept {
		d, loaded := c.drivers[k.owner.Snapshotter]
		if !loaded || k.record.Kind != snapshot.Committed {
			continue
		}
		f, err := c.checkSum(d, k)
		if err != nil {
			return err
		}
		if c.reads(k) {
			c.progress.Objects++
		}
		if f != nil {
			err = c.say(f)
		}
		if err := errors.Join(err, c.goOn()); err != nil {
			return err
		}
	}
	return nil
}

// reads says whether the layer of a tree is read, and compared with it.
func (c *checking) reads(k kept) bool {
	_, loaded := c.drivers[k.owner.Snapshotter]
	return loaded && k.record.Kind == snapshot.Committed && len(k.origin.Layers) == 1 && c.isDeep(k)
}

// refsOf returns who counts on a snapshot.
func (c *checking) refsOf(k kept) (refs []fsck.Ref, err error) {
	h, n := k.owner.shelf(), k.owner.shelf().node(k.owner.Name)
	err = c.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(h.childKey(k.owner.Name, ""), nil) {
			if len(refs) == fsck.RefsMax {
				return nil
			}
			refs = append(refs, fsck.Ref{Namespace: h.namespace, Kind: "record", ID: kv.Parts(key)[4]})
		}
		o, err := readNode(tx, n)
		for _, l := range o.Leases {
			if len(refs) < fsck.RefsMax {
				refs = append(refs, fsck.Ref{Namespace: h.namespace, Kind: "lease", ID: l.ID})
			}
		}
		return err
	})
	return refs, err
}

// say yields a finding, or how far the check is.
func (c *checking) say(f *fsck.Finding) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	c.told, c.progress.Bytes = time.Now(), c.read.Load()
	if f != nil && f.Severity == fsck.Loss {
		c.log.Error("fsck: "+f.What, "snapshot", f.ID, "where", f.Where, "why", f.Why, "done", f.Done)
	}
	if !c.yield(fsck.Item{Finding: f, Progress: c.progress}, nil) {
		c.enough = true
		return errEnough
	}
	return nil
}

// goOn is called between two pieces of work.
func (c *checking) goOn() error {
	if time.Since(c.told) >= tellEvery {
		return c.say(nil)
	}
	return c.ctx.Err()
}
