package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	smallSize = 4 << 10

	// readPart is how much a reader asks for at once.
	readPart = 16 << 20
)

// rooted keeps a blob from the garbage collector.
var rooted = content.WithLabels(map[string]string{"containerd.io/gc.root": "bench"})

func in(ctx context.Context, namespace string) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// A blob is one that is there only once, whoever asks for it and when.
type blob struct {
	bytes []byte
	desc  ocispec.Descriptor
}

func newBlob(size int64, seed, number uint64) blob {
	b := make([]byte, size)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], number)
	rand.NewChaCha8(key).Read(b) // never fails
	return blob{b, ocispec.Descriptor{Digest: digest.FromBytes(b), Size: size}}
}

func (d *door) put(ctx context.Context, b blob) error {
	return content.WriteBlob(ctx, d.store, "put-"+b.desc.Digest.Encoded(), bytes.NewReader(b.bytes), b.desc, rooted)
}

// each calls do for 0 to n-1, from many goroutines, and returns how long each
// call took.
func each(n, many int, do func(i int) error) (series, error) {
	took := make(series, n)
	failed := make([]error, many)
	var wg sync.WaitGroup
	for g := range many {
		wg.Go(func() {
			for i := g; i < n && failed[g] == nil; i += many {
				start := time.Now()
				failed[g] = do(i)
				took[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	return took, errors.Join(failed...)
}

// prepare puts the blobs into namespace "many" of both stores.
func (b *contentBench) prepare(ctx context.Context) error {
	b.digests = make([]digest.Digest, b.blobs)
	for _, d := range b.doors[:2] {
		if _, err := each(b.blobs, 2*b.writers, func(i int) error {
			blob := newBlob(smallSize, 0, uint64(i))
			b.digests[i] = blob.desc.Digest
			return d.put(in(ctx, "many"), blob)
		}); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	if !b.wants("read") && !b.wants("handle") {
		return nil
	}
	large := newBlob(b.large, 0, 1<<32)
	b.largeDigest = large.desc.Digest
	for _, d := range b.doors[:2] {
		if err := d.put(in(ctx, "large"), large); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (b *contentBench) small8(ctx context.Context, d *door, round int) (time.Duration, error) {
	return d.writeSmall(ctx, smallBlobs(d.seed, round, b.small), b.writers)
}

func (b *contentBench) small1(ctx context.Context, d *door, round int) (time.Duration, error) {
	return d.writeSmall(ctx, smallBlobs(d.seed, round+1<<16, b.small/4), 1)
}

// smallBlobs makes n blobs that no other round has.
func smallBlobs(seed uint64, round, n int) []blob {
	blobs := make([]blob, n)
	for i := range blobs {
		blobs[i] = newBlob(smallSize, seed, uint64(round)<<32|uint64(i))
	}
	return blobs
}

// writeSmall returns the median time of a blob, from the first message to the
// answer that it is durable, and deletes them again.
func (d *door) writeSmall(ctx context.Context, blobs []blob, writers int) (time.Duration, error) {
	ctx = in(ctx, "small")
	took, err := each(len(blobs), writers, func(i int) error { return d.put(ctx, blobs[i]) })
	if err != nil {
		return 0, err
	}
	_, err = each(len(blobs), writers, func(i int) error { return d.store.Delete(ctx, blobs[i].desc.Digest) })
	return median(took), err
}

func (b *contentBench) ingest(ctx context.Context, d *door, round int) (time.Duration, error) {
	large := newBlob(b.large, d.seed, uint64(round)|1<<48)
	ctx = in(ctx, "ingest")
	start := time.Now()
	if err := d.put(ctx, large); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, d.store.Delete(ctx, large.desc.Digest)
}

// read reads the large blob, which the page cache has.
func (b *contentBench) read(ctx context.Context, d *door, _ int) (time.Duration, error) {
	large := ocispec.Descriptor{Digest: b.largeDigest, Size: b.large}
	part := make([]byte, readPart)
	start := time.Now()
	r, err := d.store.ReaderAt(in(ctx, "large"), large)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for off := int64(0); off < b.large; {
		n, err := r.ReadAt(part[:min(b.large-off, readPart)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		off += int64(n)
	}
	return time.Since(start), nil
}

func (b *contentBench) info1(ctx context.Context, d *door, _ int) (time.Duration, error) {
	return b.infos(ctx, d, 1)
}

func (b *contentBench) info8(ctx context.Context, d *door, _ int) (time.Duration, error) {
	return b.infos(ctx, d, b.writers)
}

// infos returns how long all the calls took together, by call.
func (b *contentBench) infos(ctx context.Context, d *door, callers int) (time.Duration, error) {
	ctx = in(ctx, "many")
	start := time.Now()
	_, err := each(b.calls, callers, func(i int) error {
		info, err := d.store.Info(ctx, b.digests[i*7919%len(b.digests)])
		if err == nil && info.Size != smallSize {
			err = fmt.Errorf("size %d", info.Size)
		}
		return err
	})
	return time.Since(start) / time.Duration(b.calls), err
}

func (b *contentBench) list(ctx context.Context, d *door, _ int) (time.Duration, error) {
	n := 0
	start := time.Now()
	err := d.store.Walk(in(ctx, "many"), func(content.Info) error { n++; return nil })
	took := time.Since(start)
	if err == nil && n != b.blobs {
		err = fmt.Errorf("%d blobs", n)
	}
	return took, err
}
