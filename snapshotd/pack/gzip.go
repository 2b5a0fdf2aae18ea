package pack

import (
	"bytes"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// gzipLevel is as small as the standard level, in a third of the time.
const gzipLevel = 6

// gzipHeader has no name and no time, and says nothing of who made it.
const gzipHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

// A gzipWriter makes one gzip member, whose blocks end at the border of a byte,
// so that they can be made apart.
type gzipWriter struct {
	*blocks
	w    io.Writer
	crc  hash.Hash32
	size uint32 // what of it gzip wants to know
}

func newGzip(w io.Writer, workers int) (compressor, error) {
	if _, err := io.WriteString(w, gzipHeader); err != nil {
		return nil, err
	}
	b, err := newBlocks(w, workers, newDeflate)
	if err != nil {
		return nil, err
	}
	return &gzipWriter{blocks: b, w: w, crc: crc32.NewIEEE()}, nil
}

func (g *gzipWriter) Write(b []byte) (int, error) {
	n, err := g.blocks.Write(b)
	g.crc.Write(b[:n])
	g.size += uint32(n)
	return n, err
}

// Close writes the rest and what a member ends with.
func (g *gzipWriter) Close() error {
	if err := g.finish(); err != nil {
		return err
	}
	end := binary.LittleEndian.AppendUint32(nil, g.crc.Sum32())
	_, err := g.w.Write(binary.LittleEndian.AppendUint32(end, g.size))
	return err
}

// newDeflate returns what compresses blocks, one after the other.
func newDeflate() (func(b *block) error, error) {
	z, err := flate.NewWriter(io.Discard, gzipLevel)
	if err != nil {
		return nil, err
	}
	return func(b *block) error {
		out := bytes.NewBuffer(b.out[:0])
		z.ResetDict(out, b.dict)
		if _, err := z.Write(b.in); err != nil {
			return err
		}
		end := z.Flush
		if b.last {
			end = z.Close
		}
		if err := end(); err != nil {
			return err
		}
		b.out = out.Bytes()
		return nil
	}, nil
}
