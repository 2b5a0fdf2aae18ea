package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/changes"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/layer"
)

// differencesMax is how many differences of one tree are told; the others are
// counted.
const differencesMax = 20

// A deep is what a check that compares trees with their layers keeps.
type deep struct {
	pace  *fsck.Pace
	count int   // trees that could not be compared
	why   error // of the first of them
}

// isDeep says whether the tree is compared with its layer.
func (c *checking) isDeep(k kept) bool { return c.options.Deep || c.only[k.owner.id()] }

// uncompared notes a tree that could not be compared.
func (c *checking) uncompared(k kept, err error) {
	if c.deep.count++; c.deep.why == nil {
		c.deep.why = fmt.Errorf("%s: %w", k.owner.id(), err)
	}
}

// sayUncompared ends a deep check.
func (c *checking) sayUncompared() error {
	if c.deep.count == 0 {
		return nil
	}
	return c.say(&fsck.Finding{
		Severity: fsck.Note, What: "uncompared",
		Why: fmt.Sprintf("%d snapshots could not be compared with a layer; the first is %v", c.deep.count, c.deep.why),
	})
}

// compareLayer compares a tree with what its layer makes. Where the tree looks as
// it did at its commit, it counts what the looks do not tell: all else was written
// to it before the commit, past the layer.
func (c *checking) compareLayer(d driver.Driver, k kept, own driver.Snapshot, f *fsck.Finding) error {
	var found differences
	err := c.meanwhile(func(ctx context.Context) error {
		return c.againstLayer(ctx, d, k, own, func(diff changes.Difference) error {
			if f.What == "changed" || !diff.Looks() {
				found.add(diff)
			}
			return nil
		})
	})
	switch {
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case c.enough:
		return errEnough
	case err != nil:
		c.uncompared(k, err)
	case len(found.first) == 0:
	case f.What == "changed":
		f.Why += "; beside its layer: " + found.String()
	default:
		f.What, f.Why = "differs", fmt.Sprintf("it is not what layer %s makes: %v", k.origin.Layers[0].Digest, &found)
	}
	return nil
}

// differences are the first of them, and how many there are.
type differences struct {
	first []changes.Difference
	count int
}

func (d *differences) add(diff changes.Difference) {
	if d.count++; len(d.first) < differencesMax {
		d.first = append(d.first, diff)
	}
}

func (d *differences) String() string {
	words := make([]string, len(d.first))
	for i, diff := range d.first {
		words[i] = diff.String()
	}
	s := strings.Join(words, "; ")
	if more := d.count - len(d.first); more > 0 {
		s += fmt.Sprintf("; and %d more", more)
	}
	return s
}

// meanwhile does something, and says that the check goes on.
func (c *checking) meanwhile(do func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if err := c.say(nil); err != nil {
				cancel()
				<-done
				return err
			}
		}
	}
}

// againstLayer extracts the layer of a snapshot, which is on the same parents,
// into a tree without a record, and compares the two. That tree is removed, also
// by the next start if this process does not.
func (c *checking) againstLayer(ctx context.Context, d driver.Driver, k kept, own driver.Snapshot, visit func(changes.Difference) error) error {
	if len(k.origin.Layers) != 1 {
		return errNoLayer
	}
	a := applier{s: c.Store, scope: namespace.Scope{Name: k.owner.Namespace}}
	l := k.origin.Layers[0]
	// No tree is made in vain: that may be a copy of all that is below.
	if blob, err := a.open(ctx, l.descriptor()); err != nil {
		return err
	} else if err := blob.Close(); err != nil {
		return err
	}
	select {
	case c.applies <- struct{}{}:
		defer func() { <-c.applies }()
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil {
		return err // also with a place: both may have been there
	}
	h, r := k.owner.shelf(), k.record
	r.ID = c.last.Add(1)
	defer c.make(r.ID)()
	again := h.known(k.owner.Name, r, own.Parents)
	again.Kind = snapshot.Active
	err := d.Create(ctx, again)
	if err == nil {
		err = c.extractPaced(ctx, a, l, d, again)
	}
	if err == nil {
		err = c.compareTrees(ctx, d, again, own, visit)
	}
	return errors.Join(err, snapshots{s: c.Store, d: d, shelf: h}.abandon(again.Ref))
}

// extractPaced extracts a layer as fast as the check may read.
func (c *checking) extractPaced(ctx context.Context, a applier, l extracted, d driver.Driver, into driver.Snapshot) error {
	t, done, err := d.Extract(ctx, into, false)
	if err != nil {
		return err
	}
	t.FreeMin = c.cfg.freeMin()
	res, err := layer.Apply(ctx, l.descriptor(), func(ctx context.Context) (io.ReadCloser, error) {
		blob, err := a.open(ctx, l.descriptor())
		return pacedBlob{blob, func(n int64) error {
			c.read.Add(n)
			return c.deep.pace.Keep(ctx, n, tellEvery, ctx.Err)
		}}, err
	}, t)
	if err = errors.Join(err, done()); err == nil && res.DiffID != l.DiffID {
		err = fmt.Errorf("layer %s has digest %s, want %s: %w", l.Digest, res.DiffID, l.DiffID, errdefs.ErrDataLoss)
	}
	return err
}

// A pacedBlob tells how much of it is read.
type pacedBlob struct {
	io.ReadCloser
	read func(n int64) error
}

func (b pacedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if late := b.read(int64(n)); late != nil {
		err = late
	}
	return n, err
}

// compareTrees compares what two snapshots on the same parents have of their own.
func (c *checking) compareTrees(ctx context.Context, d driver.Driver, want, got driver.Snapshot, visit func(changes.Difference) error) error {
	var files [2]*os.File
	for i, s := range []driver.Snapshot{want, got} {
		f, err := openOwn(ctx, d, s)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	return changes.Compare(ctx, changes.Comparison{
		Want: files[0], Got: files[1], Visit: visit,
		Read: func(n int64) error { return c.deep.pace.Keep(ctx, n, tellEvery, ctx.Err) },
	})
}
