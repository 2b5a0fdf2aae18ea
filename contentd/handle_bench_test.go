package contentd

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

// wires are the ways to a store: the API alone, and files where they are worth
// it. Both are sockets, as in a daemon.
func wires(b *testing.B, s *Store) map[string]content.Stores {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "api")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	srv := rpc.NewServer(suite.Contentd, s.log)
	contentrpc.Register(srv, s)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	conn, err := rpc.Dial(socket)
	if err != nil {
		b.Fatal(err)
	}
	h := contentrpc.HandlesAt(serveFiles(b, s))
	h.WriteMin = 0
	b.Cleanup(func() {
		h.Close()
		conn.Close()
		srv.Stop()
		<-done
	})
	api := contentrpc.NewClient(conn)
	return map[string]content.Stores{"api": api, "files": contentrpc.WithHandles(api, h)}
}

func noise(size int) []byte {
	b := make([]byte, size)
	c := rand.NewChaCha8([32]byte{1})
	c.Read(b)
	return b
}

// BenchmarkReadWhole reads 512 MiB, in parts of 1 MiB and of 64. Over the API
// each part is a stream.
func BenchmarkReadWhole(b *testing.B) {
	s := openStore(b, testConfig(b), nil)
	data := noise(512 << 20)
	d := digest.FromBytes(data)
	if err := content.Put(b.Context(), s.In(one), content.WriterOptions{Ref: "r", Expected: d}, bytes.NewReader(data), nil); err != nil {
		b.Fatal(err)
	}
	for name, stores := range wires(b, s) {
		for _, size := range []int{1 << 20, 64 << 20} {
			b.Run(fmt.Sprintf("%dMiB/%s", size>>20, name), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				part := make([]byte, size)
				for b.Loop() {
					benchRead(b, stores.In(one), d, part)
				}
			})
		}
	}
}

func benchRead(b *testing.B, s content.Blobs, d digest.Digest, part []byte) {
	r, err := s.Open(b.Context(), d)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for at := int64(0); at < r.Size(); at += int64(len(part)) {
		if n, err := r.ReadAt(part, at); n < len(part) {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkOpenBlob opens and closes a blob.
func BenchmarkOpenBlob(b *testing.B) {
	s := openStore(b, testConfig(b), nil)
	d := digest.FromString("a blob")
	if err := content.Put(b.Context(), s.In(one), content.WriterOptions{Ref: "r", Expected: d}, bytes.NewReader([]byte("a blob")), nil); err != nil {
		b.Fatal(err)
	}
	for name, stores := range wires(b, s) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r, err := stores.In(one).Open(b.Context(), d)
				if err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}

// BenchmarkWriteSizes writes and commits blobs of several sizes: from where on a
// file is worth it.
func BenchmarkWriteSizes(b *testing.B) {
	s := openStore(b, testConfig(b), nil)
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20, 64 << 20, 512 << 20} {
		data := noise(size)
		for name, stores := range wires(b, s) {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, name), func(b *testing.B) {
				b.SetBytes(int64(size))
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					data[0], data[1], data[2] = byte(i), byte(i>>8), name[0]
					d := digest.FromBytes(data)
					b.StartTimer()
					o := content.WriterOptions{Ref: "r", Total: int64(size), Expected: d}
					if err := content.Put(b.Context(), stores.In(one), o, bytes.NewReader(data), nil); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := s.In(one).Delete(b.Context(), d); err != nil {
						b.Fatal(err)
					}
					s.sweep(b.Context())
					b.StartTimer()
				}
			})
		}
	}
}
