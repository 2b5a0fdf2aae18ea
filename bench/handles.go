package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	gantry "github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// printHandles prints what gantry's own client does by descriptor. Reading is
// beside contentd's own Read, by containerd's client, and writing beside
// containerd.
func (b *contentBench) printHandles(ctx context.Context, out io.Writer) error {
	for _, w := range []struct {
		work
		base *door
		api  func(context.Context, *door, int) (time.Duration, error)
	}{
		{work{"handle", fmt.Sprintf("%d MiB read by handle, beside contentd's Read", b.large>>20), b.handleRead}, b.doors[1], b.read},
		{work{"put", fmt.Sprintf("%d MiB written by handle, beside containerd's Write", b.large>>20), b.handleWrite}, b.doors[0], b.ingest},
	} {
		if !b.wants(w.name) {
			continue
		}
		handle := &door{name: "handle", own: b.doors[1].own, files: b.doors[1].files, seed: 9}
		by := w.do
		w.do = func(ctx context.Context, d *door, round int) (time.Duration, error) {
			if d == handle {
				return by(ctx, d, round)
			}
			return w.api(ctx, d, round)
		}
		took, err := b.measure(ctx, w.work, []*door{w.base, handle})
		if err != nil {
			return err
		}
		ratio := took[1].ratio(took[0])
		fmt.Fprintf(out, "| %s (%s) | %s | %s | %.3f | | |\n", w.what, w.name, show(median(took[0])), show(median(took[1])), ratio)
		b.hold(w.name, ratio)
	}
	return nil
}

// handleRead reads the large blob by a descriptor that contentd lends.
func (b *contentBench) handleRead(ctx context.Context, d *door, _ int) (time.Duration, error) {
	part := make([]byte, 1<<20)
	start := time.Now()
	r, err := d.files.Files(namespace.Scope{Name: "large"}).OpenFile(ctx, b.largeDigest)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for off := int64(0); off < b.large; {
		n, err := r.ReadAt(part[:min(b.large-off, int64(len(part)))], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		off += int64(n)
	}
	return time.Since(start), nil
}

// handleWrite writes a large blob by a descriptor that contentd lends.
func (b *contentBench) handleWrite(ctx context.Context, d *door, round int) (time.Duration, error) {
	large := newBlob(b.large, d.seed, uint64(round)|1<<48)
	store := d.own.Content.In(namespace.Scope{Name: "ingest"})
	start := time.Now()
	if err := gantry.Put(ctx, store, gantry.WriterOptions{
		Ref: "put-" + large.desc.Digest.Encoded(), Total: large.desc.Size, Expected: large.desc.Digest,
	}, bytes.NewReader(large.bytes), nil); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, store.Delete(ctx, large.desc.Digest)
}
