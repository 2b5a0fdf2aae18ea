package inflate

import (
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// FuzzReader compares what becomes of any stream with what compress/gzip makes
// of it; and of a stream that ends in whatever sum it needs, as otherwise a sum
// would hide what went wrong before.
func FuzzReader(f *testing.F) {
	for _, body := range bodies() {
		body = body[:min(len(body), 2000)]
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 9} {
			f.Add(compress(f, body, level, gzip.Header{}), body)
		}
	}
	f.Add(compress(f, skewed(3000), 9, gzip.Header{Name: "name", Comment: "comment", Extra: []byte("extra")}), []byte("x"))
	f.Fuzz(func(t *testing.T, packed, body []byte) {
		if err := agree(packed); err != nil {
			t.Error(err)
		}
		end := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(body))
		end = binary.LittleEndian.AppendUint32(end, uint32(len(body)))
		if err := agree(append(packed[:max(len(packed)-8, 0):max(len(packed)-8, 0)], end...)); err != nil {
			t.Errorf("with the sum of the body: %v", err)
		}
	})
}
