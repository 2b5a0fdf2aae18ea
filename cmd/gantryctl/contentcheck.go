package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/suite"
)

// checkMax is how many blobs contentd is asked about at once.
const checkMax = 5000

// A checkup is a verification of blobs under way.
type checkup struct {
	n           *node
	ctx         context.Context
	p           *progress
	done, total int64 // bytes
	count       int   // blobs
	reached     int   // of them
}

// checkAll yields what is found of each blob. One that is deleted meanwhile is
// passed over.
func (n *node) checkAll(ctx context.Context, infos []content.Info, p *progress) iter.Seq2[verifyRow, error] {
	return func(yield func(verifyRow, error) bool) {
		k := &checkup{n: n, ctx: ctx, p: p, count: len(infos)}
		for _, i := range infos {
			k.total += i.Size
		}
		checker, done := n.checker(ctx)
		defer done()
		for some := range slices.Chunk(infos, checkMax) {
			found, err := k.ask(checker, some)
			asked := err == nil
			for _, info := range some {
				row := verifyRow{Digest: info.Digest, Size: info.Size, State: verifyOK}
				if f := found[info.Digest]; f != nil {
					row.State, row.Why = f.What, f.Why
				}
				if !asked {
					row.State, row.Why, err = k.read(info)
				}
				if errors.Is(err, errdefs.ErrNotFound) {
					continue
				}
				if !yield(row, err) || err != nil {
					return
				}
			}
		}
	}
}

// checker returns contentd as its operator sees it, or nil where it is not to be
// reached.
func (n *node) checker(ctx context.Context) (c fsck.Checker, done func()) {
	// If only one of them was moved, the daemons are of another suite than the
	// door.
	if (n.address == suite.Address) != (n.sockets == suite.Sockets) {
		return nil, func() {}
	}
	o, err := n.operate(ctx, suite.Socket(n.sockets, suite.Contentd))
	if err != nil {
		return nil, func() {}
	}
	return o.checker, func() { o.Close() }
}

// ask has contentd check some blobs and returns what it finds of those that are
// not as they have to be.
func (k *checkup) ask(checker fsck.Checker, infos []content.Info) (map[digest.Digest]*fsck.Finding, error) {
	if checker == nil {
		return nil, fmt.Errorf("contentd is not reached: %w", errdefs.ErrUnavailable)
	}
	var o fsck.Options
	size := int64(0)
	for _, i := range infos {
		o.Only = append(o.Only, i.Digest.String())
		size += i.Size
	}
	wrong := make(map[digest.Digest]*fsck.Finding)
	for item, err := range checker.Check(k.ctx, o) {
		if err != nil {
			return nil, err
		}
		k.tell(item.Progress.Bytes, k.reached+int(item.Progress.Objects))
		if f := item.Finding; f != nil && f.Severity == fsck.Loss {
			wrong[digest.Digest(f.ID)] = f
		}
	}
	k.done += size
	k.reached += len(infos)
	return wrong, nil
}

// read gets a blob as any client does.
func (k *checkup) read(info content.Info) (state, why string, err error) {
	k.reached++
	_, err = k.n.in().Get(k.ctx, info.Digest, io.Discard, client.GetOptions{Progress: func(c client.Progress) {
		k.tell(c.Done, k.reached)
	}})
	k.done += info.Size
	if errors.Is(err, errdefs.ErrDataLoss) {
		return verifyCorrupt, err.Error(), nil
	}
	return verifyOK, "", err
}

// tell says how far it is, with so many bytes more than before.
func (k *checkup) tell(more int64, reached int) {
	k.p.at(k.done+more, k.total, fmt.Sprintf("blob %d of %d", min(reached, k.count), k.count))
}
