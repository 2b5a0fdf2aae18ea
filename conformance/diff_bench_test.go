package conformance

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/changes"
	"github.com/gantryd/gantry/snapshotd/pack"
)

// BenchmarkDiff makes layers of 9,000 files, 130 MB, with containerd's code and with
// ours: of all of them, and of two trees in which 90 differ. In the second, ours
// reads both trees, as it does not take a time's word for the contents, and an
// upper directory would be read instead.
func BenchmarkDiff(b *testing.B) {
	full, before, empty := b.TempDir(), b.TempDir(), b.TempDir()
	forest(b, full, 0)
	forest(b, before, 100)
	for _, c := range []struct{ name, lower, upper string }{{"all", empty, full}, {"some", before, full}} {
		for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
			name := c.name + "/" + mediaType[len(ocispec.MediaTypeImageLayer)-3:]
			b.Run(name+"/containerd", func(b *testing.B) {
				metered(b, func() { theirs(b, mediaType, c.lower, c.upper) })
			})
			b.Run(name+"/gantry", func(b *testing.B) {
				metered(b, func() { ours(b, mediaType, c.lower, c.upper) })
			})
		}
	}
}

// metered runs a benchmark, and tells the processor's time, which a machine that
// has other things to do changes less.
func metered(b *testing.B, do func()) {
	used := func() int64 {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	before := used()
	for b.Loop() {
		do()
	}
	b.ReportMetric(float64(used()-before)/1e6/float64(b.N), "cpu-ms/op")
}

// counter is a writer that knows how much.
type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

func theirs(b *testing.B, mediaType, lower, upper string) {
	var out counter
	how := map[string]compression.Compression{ocispec.MediaTypeImageLayerGzip: compression.Gzip, ocispec.MediaTypeImageLayerZstd: compression.Zstd}[mediaType]
	z, err := compression.CompressStream(&out, how)
	if err != nil {
		b.Fatal(err)
	}
	if err := archive.WriteDiff(b.Context(), z, lower, upper); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(out.n)/1e6, "MB")
}

func ours(b *testing.B, mediaType, lower, upper string) {
	var out counter
	format, err := pack.FormatOf(mediaType)
	if err != nil {
		b.Fatal(err)
	}
	l, err := os.Open(lower)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	u, err := os.Open(upper)
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	if _, err := pack.Write(b.Context(), &out, format, changes.Trees{Lower: l, Upper: u}, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(out.n)/1e6, "MB")
}

// forest makes 9,000 files, of which one in other is another, if it is not 0.
func forest(b *testing.B, root string, other int) {
	at := time.Unix(1_700_000_000, 1)
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 1<<19)
	for i := range 9000 {
		dir := filepath.Join(root, fmt.Sprint(i/1000), fmt.Sprint(i%30))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		data := words[:min(int(r.ExpFloat64()*14_500), len(words))]
		for j := range data {
			data[j] = "etaoin shrdlu\ncmfwyp-vbgkqjxz(){}01234567"[min(r.IntN(41), r.IntN(41))]
		}
		when := at
		if other > 0 && i%other == 0 {
			when = at.Add(time.Second)
		}
		path := filepath.Join(dir, fmt.Sprint("file", i))
		if err := os.WriteFile(path, data, 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			b.Fatal(err)
		}
	}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chtimes(path, at, at)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}
