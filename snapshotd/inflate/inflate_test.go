package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/gantryd/gantry/services/diff/difftest"
)

// mixture is bytes as files have them: words, which come again, and numbers.
func mixture(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	words := make([][]byte, 3000)
	for i := range words {
		words[i] = make([]byte, 1+r.IntN(10))
		for j := range words[i] {
			words[i][j] = byte(min(r.IntN(256), r.IntN(256)))
		}
	}
	b := make([]byte, 0, n+300)
	for len(b) < n {
		switch k := r.IntN(20); {
		case k < 14:
			b = append(b, words[min(r.IntN(3000), r.IntN(3000), r.IntN(3000))]...)
		case k < 18:
			b = append(b, byte(r.Uint32()), byte(r.IntN(20)), 0)
		case len(b) > 0:
			at := r.IntN(len(b))
			b = append(b, b[at:min(len(b), at+3+r.IntN(255))]...)
		}
	}
	return b[:n]
}

// skewed has bytes of which each is rarer than the one before by as much as
// makes the codes of the rarest as long as codes may be.
func skewed(n int) []byte {
	r := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, n)
	for i := range b {
		for r.IntN(5) > 1 && b[i] < 40 {
			b[i]++
		}
	}
	return b
}

// bodies are what is compressed in the tests.
func bodies() map[string][]byte {
	all := map[string][]byte{
		"nothing":  {},
		"a byte":   {1},
		"zeros":    make([]byte, 3*window+17),
		"mixture":  mixture(1, 3*outSize+12345),
		"skewed":   skewed(400_000),
		"a window": mixture(2, window+outSize),
	}
	noise := make([]byte, 200_000)
	rand.NewChaCha8([32]byte{}).Read(noise)
	all["noise"] = noise
	for period := 1; period < 40; period++ {
		all[fmt.Sprint("period ", period)] = bytes.Repeat(noise[:period], 5000/period)
	}
	return all
}

func compress(t testing.TB, body []byte, level int, h gzip.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Header = h
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestReaderReturnsWhatWasCompressed(t *testing.T) {
	sources := map[string]func(io.Reader) io.Reader{
		"whole":         func(r io.Reader) io.Reader { return r },
		"byte by byte":  iotest.OneByteReader,
		"end with data": iotest.DataErrReader,
	}
	levels := []int{flate.HuffmanOnly, 0, 1, 6, 9}
	if difftest.Raced {
		levels = levels[rand.IntN(len(levels)):][:1]
	}
	for name, body := range bodies() {
		for _, level := range levels {
			packed := compress(t, body, level, gzip.Header{})
			for source, from := range sources {
				got, err := io.ReadAll(NewReader(from(bytes.NewReader(packed))))
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%s, level %d, %s: %d bytes, %v, want %d", name, level, source, len(got), err, len(body))
				}
			}
		}
	}
}

func TestReaderReadsEveryMember(t *testing.T) {
	var packed, want []byte
	for i := range 5 {
		body := mixture(uint64(i), 1000*i)
		h := gzip.Header{Name: "name", Comment: "comment", Extra: bytes.Repeat([]byte("extra"), 10_000)}
		packed = append(packed, compress(t, body, 6, h)...)
		packed = append(packed, compress(t, nil, 6, gzip.Header{})...)
		want = append(want, body...)
	}
	got, err := io.ReadAll(NewReader(bytes.NewReader(packed)))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
	_, err = io.ReadAll(NewReader(bytes.NewReader(append(packed, "garbage behind"...))))
	if !errors.Is(err, gzip.ErrHeader) {
		t.Errorf("garbage behind the last member: %v", err)
	}
}

func TestReaderTellsHowAStreamIsBroken(t *testing.T) {
	packed := compress(t, mixture(1, 5000), 6, gzip.Header{Name: "name"})
	if _, err := io.ReadAll(NewReader(bytes.NewReader(nil))); err != nil {
		t.Errorf("of nothing: %v", err) // ReadAll hides the io.EOF that it is
	}
	for n := 1; n < len(packed); n++ {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(packed[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d of %d bytes: %v", n, len(packed), err)
		}
	}
	sum := bytes.Clone(packed)
	sum[len(sum)-8]++
	if _, err := io.ReadAll(NewReader(bytes.NewReader(sum))); !errors.Is(err, gzip.ErrChecksum) {
		t.Errorf("another sum: %v", err)
	}
	lost := errors.New("lost")
	if _, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(packed[:100]), iotest.ErrReader(lost)))); !errors.Is(err, lost) {
		t.Errorf("a source that fails: %v", err)
	}
	z := NewReader(idle{})
	if _, err := z.Read(make([]byte, 1)); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a source that returns nothing: %v", err)
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

// TestReaderAgreesOnDamage compares with compress/gzip what becomes of streams
// with damage, whose last sum is no help as most of them end before it.
func TestReaderAgreesOnDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	times := 60
	if difftest.Raced {
		times /= 5
	}
	for name, body := range bodies() {
		body = body[:min(len(body), 3000)]
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 9} {
			packed := compress(t, body, level, gzip.Header{})
			for range times {
				broken := bytes.Clone(packed)
				for range 1 + r.IntN(3) {
					// Most of what can be wrong is at the beginning.
					broken[min(10+r.IntN(80), r.IntN(len(broken)))] ^= 1 << r.IntN(8)
				}
				if err := agree(broken); err != nil {
					t.Errorf("%s, level %d: %v: %x", name, level, err, broken)
				}
			}
		}
	}
}

// agree compares with compress/gzip.
func agree(packed []byte) error {
	var want []byte
	g, wantErr := gzip.NewReader(bytes.NewReader(packed))
	if wantErr == nil {
		want, wantErr = io.ReadAll(g)
	}
	if wantErr == io.EOF {
		wantErr = nil // of nothing
	}
	got, err := io.ReadAll(NewReader(bytes.NewReader(packed)))
	switch {
	case (err == nil) != (wantErr == nil):
		return fmt.Errorf("error %v, want %v", err, wantErr)
	case err == nil && !bytes.Equal(got, want):
		return fmt.Errorf("%d bytes, want %d others", len(got), len(want))
	case errors.Is(wantErr, gzip.ErrChecksum) && !errors.Is(err, gzip.ErrChecksum):
		// It found no fault before the end, and neither did we.
		return fmt.Errorf("error %v, want %v", err, wantErr)
	case errors.Is(wantErr, gzip.ErrChecksum) && !bytes.Equal(got, want):
		return fmt.Errorf("%d bytes before the sum, want %d others", len(got), len(want))
	}
	return nil
}

func BenchmarkReader(b *testing.B) {
	body := mixture(1, 32<<20)
	packed := compress(b, body, 6, gzip.Header{})
	for _, lib := range []struct {
		name string
		open func(io.Reader) (io.Reader, error)
	}{
		{"inflate", func(r io.Reader) (io.Reader, error) { return NewReader(r), nil }},
		{"klauspost", func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) }},
		{"stdlib", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	} {
		b.Run(lib.name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			part := make([]byte, 256<<10)
			for b.Loop() {
				z, err := lib.open(bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				// Without the shortcuts of either side.
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{z}, part)
				if err != nil || n != int64(len(body)) {
					b.Fatalf("%d bytes, %v", n, err)
				}
			}
		})
	}
}
