package snapshotd

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// A measured tree is one that nothing will change any more.
type measured struct {
	snapshot.Usage
	sum string // see sumOf
}

// firm makes the tree of s what it is to be for good, that of as, and measures
// it. It is durable if all is set. The disk writes while the tree is read, where
// the driver can tell the one from the other.
func firm(ctx context.Context, d driver.Driver, snapshotter string, s, as driver.Snapshot, all bool) (m measured, err error) {
	b, ok := d.(driver.Batcher)
	if !ok {
		if m.Usage, err = d.Commit(ctx, s, as); err == nil && hasNotes(snapshotter) {
			m.sum, err = sumOf(ctx, d, as)
		}
		return m, err
	}
	if err := b.Settle(ctx, s, as); err != nil {
		return m, err
	}
	work, ctx := errgroup.WithContext(ctx)
	if all {
		work.Go(b.Sync)
	}
	work.Go(func() (err error) {
		if m.Usage, err = d.Usage(ctx, as); err == nil && hasNotes(snapshotter) {
			m.sum, err = sumOf(ctx, d, as)
		}
		return err
	})
	err = work.Wait() // before m is read
	return m, err
}
