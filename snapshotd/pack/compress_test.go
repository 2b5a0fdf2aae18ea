package pack

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/gantryd/gantry/services/diff/difftest"
)

// compressors are the ways there are, and how what they make is read.
var compressors = map[string]struct {
	compress func(w io.Writer, workers int) (compressor, error)
	read     func(r io.Reader) (io.Reader, error)
}{
	"gzip": {newGzip, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	"zstd": {newZstd, func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) }},
}

// text is n bytes that can be compressed, the same for a seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	words := make([][]byte, 2000)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(12))
		for j := range words[i] {
			words[i][j] = byte('a' + r.IntN(26))
		}
	}
	out := make([]byte, 0, n+16)
	for len(out) < n {
		if r.IntN(50) == 0 {
			out = append(out, make([]byte, r.IntN(3000))...)
		}
		out = append(out, words[int(r.ExpFloat64()*100)%len(words)]...)
	}
	return out[:n]
}

func compress(t testing.TB, how string, workers, piece int, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := compressors[how].compress(&out, workers)
	if err != nil {
		t.Fatal(err)
	}
	defer z.stop()
	for b := data; len(b) > 0; {
		n := min(len(b), piece)
		if _, err := z.Write(b[:n]); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestCompressedIsTheSameOnAnyMachine compresses with other numbers of cores and
// in other pieces.
func TestCompressedIsTheSameOnAnyMachine(t *testing.T) {
	large := 5<<20 + 4711
	if difftest.Raced {
		large /= 2
	}
	for how, c := range compressors {
		for _, n := range []int{1024, blockSize - 1, blockSize, blockSize + 1, 3 * blockSize, large} {
			data := text(uint64(n), n)
			want := compress(t, how, 1, n, data)
			r, err := c.read(bytes.NewReader(want))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s of %d bytes: read back %d, %v", how, n, len(got), err)
			}
			for _, workers := range []int{1, 2, 3, 8} {
				got := compress(t, how, workers, 512+workers*1000, data)
				if !bytes.Equal(got, want) {
					t.Errorf("%s of %d bytes with %d workers: %d bytes, %x, want %d, %x", how, n, workers, len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
				}
			}
		}
	}
}

// TestCompressorsTakeLittleMemory compresses much more than they may keep.
func TestCompressorsTakeLittleMemory(t *testing.T) {
	if difftest.Raced {
		t.Skip("the race detector takes memory of its own")
	}
	const limit = 24 << 20
	piece := text(1, 1<<20)
	for how, c := range compressors {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		z, err := c.compress(io.Discard, workersMax)
		if err != nil {
			t.Fatal(err)
		}
		for range 48 {
			if _, err := z.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		z.stop()
		// What the heap took from the system is what it had at its peak.
		if runtime.ReadMemStats(&after); after.HeapSys > before.HeapSys+limit {
			t.Errorf("%s: the heap grew by %d MiB", how, (after.HeapSys-before.HeapSys)>>20)
		}
	}
}
