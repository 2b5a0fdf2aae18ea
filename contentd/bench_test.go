package contentd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

var benchSizes = []int{4 << 10, 1 << 20}

// unique makes b what no blob was before.
func unique(b []byte, n *atomic.Uint64) []byte {
	binary.LittleEndian.PutUint64(b, n.Add(1))
	return b
}

// BenchmarkPut writes blobs whose digest is known, as a pull does: by this
// process, by many at once, and over the wire. The baseline is what any durable
// store of files has to do: write, sync, rename, sync the directory.
func BenchmarkPut(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("baseline/%dKiB", size>>10), func(b *testing.B) { benchBaseline(b, size) })
		b.Run(fmt.Sprintf("local/%dKiB", size>>10), func(b *testing.B) {
			benchPut(b, openStore(b, testConfig(b), nil), size)
		})
		b.Run(fmt.Sprintf("parallel/%dKiB", size>>10), func(b *testing.B) {
			s := openStore(b, testConfig(b), nil).In(one)
			var n atomic.Uint64
			b.SetBytes(int64(size))
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for buf := make([]byte, size); pb.Next(); {
					if err := benchOne(b.Context(), s, unique(buf, &n)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
		b.Run(fmt.Sprintf("wire/%dKiB", size>>10), func(b *testing.B) {
			s := openStore(b, testConfig(b), nil)
			benchPut(b, contentrpc.NewClient(rpctest.Pipe(b, func(r grpc.ServiceRegistrar) {
				contentrpc.Register(r, s)
			})), size)
		})
	}
}

func benchPut(b *testing.B, stores content.Stores, size int) {
	s := stores.In(one)
	buf := make([]byte, size)
	var n atomic.Uint64
	b.SetBytes(int64(size))
	for b.Loop() {
		if err := benchOne(b.Context(), s, unique(buf, &n)); err != nil {
			b.Fatal(err)
		}
	}
}

func benchOne(ctx context.Context, s content.Store, body []byte) error {
	d := digest.FromBytes(body)
	w, err := s.Writer(ctx, content.WriterOptions{Ref: d.String(), Total: int64(len(body)), Expected: d})
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(body); err != nil {
		return err
	}
	return w.Commit(ctx, int64(len(body)), d, nil)
}

func benchBaseline(b *testing.B, size int) {
	dir := b.TempDir()
	buf := make([]byte, size)
	var n atomic.Uint64
	b.SetBytes(int64(size))
	for b.Loop() {
		d := digest.FromBytes(unique(buf, &n))
		from := filepath.Join(dir, "new")
		f, err := os.Create(from)
		if err != nil {
			b.Fatal(err)
		}
		_, err = f.Write(buf)
		if err := errors.Join(err, f.Sync(), f.Close(), os.Rename(from, filepath.Join(dir, d.Encoded())), osDisk{}.SyncDir(dir)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIngest writes one large blob in parts, as a pull does.
func BenchmarkIngest(b *testing.B) {
	const size, part = 256 << 20, 1 << 20
	s := openStore(b, testConfig(b), nil)
	wire := contentrpc.NewClient(rpctest.Pipe(b, func(r grpc.ServiceRegistrar) { contentrpc.Register(r, s) }))
	var n atomic.Uint64
	for name, stores := range map[string]content.Stores{"local": s, "wire": wire} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			buf := make([]byte, part)
			for b.Loop() {
				w, err := stores.In(one).Writer(b.Context(), content.WriterOptions{Ref: "r", Total: size})
				if err != nil {
					b.Fatal(err)
				}
				for range size / part {
					if _, err := w.Write(unique(buf, &n)); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Commit(b.Context(), size, "", nil); err != nil {
					b.Fatal(err)
				}
				if err := stores.In(one).Delete(b.Context(), w.Digest()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				s.sweep(b.Context())
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRead reads a blob from one end to the other.
func BenchmarkRead(b *testing.B) {
	s := openStore(b, testConfig(b), nil)
	d := put(b, s, one, make([]byte, 64<<20))
	wire := contentrpc.NewClient(rpctest.Pipe(b, func(r grpc.ServiceRegistrar) { contentrpc.Register(r, s) }))
	for name, stores := range map[string]content.Stores{"local": s, "wire": wire} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(64 << 20)
			part := make([]byte, 1<<20)
			for b.Loop() {
				r, err := stores.In(one).Open(b.Context(), d)
				if err != nil {
					b.Fatal(err)
				}
				for off := int64(0); off < r.Size(); off += int64(len(part)) {
					if _, err := r.ReadAt(part, off); err != nil {
						b.Fatal(err)
					}
				}
				r.Close()
			}
		})
	}
}

// BenchmarkOpen starts on a store of 2,000 blobs.
func BenchmarkOpen(b *testing.B) {
	cfg := testConfig(b)
	s, err := Open(cfg, Needs{})
	if err != nil {
		b.Fatal(err)
	}
	var n atomic.Uint64
	for range 2000 {
		if err := benchOne(b.Context(), s.In(one), unique(make([]byte, 8), &n)); err != nil {
			b.Fatal(err)
		}
	}
	closeStore(b, s)
	for b.Loop() {
		s, err := Open(cfg, Needs{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		closeStore(b, s)
	}
}
