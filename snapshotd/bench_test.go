package snapshotd

import (
	"archive/tar"
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/snapshot"
)

// benchLayer is some 100 MiB in 5,000 files, of bytes that compress by half, as
// programs do.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := rand.NewChaCha8([32]byte{1})
	put := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	for d := range 250 {
		dir := fmt.Sprintf("usr/lib/d%d/", d)
		put(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		for f := range 20 {
			body := make([]byte, 1000)
			if f == 0 {
				body = make([]byte, 400_000)
			}
			r.Read(body[:len(body)/2])
			for i := len(body) / 2; i < len(body); i++ {
				body[i] = byte(i)
			}
			put(tar.Header{Name: fmt.Sprint(dir, "f", f), Typeflag: tar.TypeReg, Mode: 0o644}, body)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func compress(b *testing.B, data []byte, mediaType string) []byte {
	b.Helper()
	var out bytes.Buffer
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		w := gzip.NewWriter(&out)
		w.Write(data)
		w.Close()
	case ocispec.MediaTypeImageLayerZstd:
		w, err := zstd.NewWriter(&out)
		if err != nil {
			b.Fatal(err)
		}
		w.Write(data)
		w.Close()
	default:
		return data
	}
	return out.Bytes()
}

func BenchmarkApply(b *testing.B) {
	data := benchLayer(b)
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		for _, parent := range []string{"", "base", "same"} {
			b.Run(fmt.Sprintf("%s/on_%q", mediaType[len("application/vnd.oci.image.layer.v1."):], parent), func(b *testing.B) {
				blobs := difftest.NewBlobs()
				needs := testNeeds(b)
				needs.Content, needs.Log = blobs, slog.New(slog.DiscardHandler)
				s := openTest(b, testConfig(b), needs)
				// ext4 places a directory by its name, and is slow where files
				// were removed a moment ago: names of the last run are not for
				// this one, as they are not for a daemon.
				s.last.Store(rand.Uint64N(1 << 40))
				sn := in(b, s, one)
				applyLayer(b, s, blobs, one, prepare(b, sn, "base-key", ""), difftest.Tar(difftest.Dir("usr"), difftest.Dir("usr/lib"), difftest.File("usr/lib/f", "x")))
				commitTo(b, sn, "base", "base-key", "")
				applyLayer(b, s, blobs, one, prepare(b, sn, "same-key", ""), data)
				commitTo(b, sn, "same", "same-key", "")
				packed := compress(b, data, mediaType)
				layer := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(packed), Size: int64(len(packed))}
				blobs.Put(one.Name, layer.Digest, packed)
				b.SetBytes(int64(len(data)))
				for i := 0; b.Loop(); i++ {
					key := fmt.Sprint("key", i)
					mounts := prepare(b, sn, key, parent)
					if _, err := s.Layers().In(one).Apply(b.Context(), layer, mounts, diff.ApplyOptions{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkPrepareRemove(b *testing.B) {
	needs := testNeeds(b)
	needs.Log = slog.New(slog.DiscardHandler)
	s := openTest(b, testConfig(b), needs)
	sn := in(b, s, one)
	prepare(b, sn, "base-key", "")
	commitTo(b, sn, "base", "base-key", "")
	for b.Loop() {
		prepare(b, sn, "key", "base")
		if err := sn.Remove(b.Context(), "key"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommit(b *testing.B) {
	needs := testNeeds(b)
	needs.Log = slog.New(slog.DiscardHandler)
	s := openTest(b, testConfig(b), needs)
	sn := in(b, s, one)
	for i := 0; b.Loop(); i++ {
		prepare(b, sn, "key", "")
		if err := sn.Commit(b.Context(), fmt.Sprint("name", i), "key", snapshot.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList lists ten thousand snapshots.
func BenchmarkList(b *testing.B) {
	needs := testNeeds(b)
	needs.Log = slog.New(slog.DiscardHandler)
	s := openTest(b, testConfig(b), needs)
	sn := in(b, s, one)
	prepare(b, sn, "base-key", "")
	commitTo(b, sn, "base", "base-key", "")
	const n, makers = 10_000, 16
	var all errgroup.Group
	for m := range makers {
		all.Go(func() error {
			for i := m; i < n; i += makers {
				if _, err := sn.View(b.Context(), fmt.Sprint("key", i), "base", snapshot.Options{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		found := 0
		for _, err := range sn.List(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
			found++
		}
		if found != n+1 {
			b.Fatalf("%d snapshots, want %d", found, n+1)
		}
	}
}
