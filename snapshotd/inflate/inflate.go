// Package inflate decompresses gzip streams (RFC 1952 and 1951), faster than the
// libraries there are for it in Go, as layers are mostly gzip and decompressing
// them is most of the work of unpacking. What it takes for a stream, and what it
// makes of it, is what compress/gzip does; the fuzz test compares them.
//
// It is fast because it looks bits up in a word of 64, of which there are always
// enough for two literals and a match; because its first table gives back up to
// two literals at once; and because it copies words, and past the end of what is
// to be copied, into a buffer that has room for it. Input and output are buffers
// of its own, of which the decoder knows that there is room, so that the inner
// loop has no case for their ends.
//
// Memory is bounded, some 600 KiB, whatever the stream says. There is no unsafe
// code: a stream that is made to break it can at worst end in an error.
package inflate

import (
	"errors"
	"hash/crc32"
	"io"
)

const (
	window  = 32 << 10
	outSize = 256 << 10 // decompressed at once
	inSize  = 256 << 10 // read at once

	// The inner loop looks for room once for four literals and a match, which
	// is at most 258 bytes and copied in steps of 16.
	outSlack = 4 + 258 + 16

	// The inner loop reads two words at once, and a block's header is at most
	// some 570 bytes: 320 lengths of 14 bits, 19 of 3 and 17 bits more.
	inSlack   = 16
	headerMax = 600

	// So many zeros are put behind the end of the stream: what is needed, and
	// the word that was read ahead.
	padding = headerMax + 8

	emptyReadsMax = 100
)

// ErrCorrupt says that the stream is not what a compressor makes.
var ErrCorrupt = errors.New("inflate: corrupt stream")

// A Reader decompresses.
type Reader struct {
	src io.Reader
	err error // after what out has

	// in[pos:end] is what was read and not used. At the end of src, zeros are
	// behind it, which end counts and real does not.
	in             []byte
	pos, end, real int
	bits           uint64 // that come before in[pos:], the next one lowest
	n              uint   // how many of them are counted; there may be more

	// out[r:w] is what Read has not returned yet; before it is what matches
	// refer to, in this member as far as from.
	out        []byte
	r, w, from int
	summed     int // what sum has of out
	sum, size  uint32

	next   func(*Reader) error // what follows
	final  bool                // the block is the last one
	stored int                 // bytes left of a stored block

	literals, distances, metas table
	literal                    [literalSize]entry
	distance                   [distanceSize]entry
	meta                       [1 << metaRoot]entry
}

// NewReader returns a reader of what r has compressed: one or more members. It
// reads beyond the end of the last only what was not read yet at once.
func NewReader(r io.Reader) *Reader {
	z := &Reader{
		src:  r,
		in:   make([]byte, inSize+padding),
		out:  make([]byte, window+outSize+outSlack),
		next: (*Reader).member,
	}
	z.literals = table{z.literal[:], literalRoot, literalEntry}
	z.distances = table{z.distance[:], distanceRoot, distanceEntry}
	z.metas = table{z.meta[:], metaRoot, metaEntry}
	return z
}

// Read implements io.Reader. A stream that is none is [gzip.ErrHeader], one
// whose sum is another [gzip.ErrChecksum], one that ends early
// [io.ErrUnexpectedEOF], and else [ErrCorrupt]. Errors of the source are
// returned as they are.
func (z *Reader) Read(p []byte) (int, error) {
	for z.r == z.w {
		if z.err != nil {
			return 0, z.err
		}
		z.decode()
	}
	n := copy(p, z.out[z.r:z.w])
	z.r += n
	return n, nil
}

// decode fills out, which has all been read.
func (z *Reader) decode() {
	if z.w > window {
		old := z.w - window
		copy(z.out, z.out[old:z.w])
		z.r, z.w, z.summed, z.from = window, window, window, max(z.from-old, 0)
	}
	for z.err == nil && z.w < window+outSize {
		z.err = z.next(z)
	}
	if errors.Is(z.err, ErrCorrupt) && z.end > z.real && z.pos-int(z.n>>3)+8 > z.real {
		// Not even the sum, of 8 bytes, would be whole: what was corrupt are
		// the zeros behind the end.
		z.err = io.ErrUnexpectedEOF
	}
	z.account()
}

// account brings the sum up to date.
func (z *Reader) account() {
	b := z.out[z.summed:z.w]
	z.sum = crc32.Update(z.sum, crc32.IEEETable, b)
	z.size += uint32(len(b))
	z.summed = z.w
}

// need makes sure that there are n bytes after pos, at most headerMax, of which
// those behind the end of the source are zeros. Bits that were used beyond it are
// [io.ErrUnexpectedEOF].
func (z *Reader) need(n int) error {
	if z.pos-int(z.n>>3) > z.real {
		return io.ErrUnexpectedEOF
	}
	if z.end-z.pos >= n || z.end > z.real {
		return nil
	}
	// What was read ahead is given back, as it would be gone from in.
	z.pos -= int(z.n >> 3)
	z.n &= 7
	z.bits &= 1<<z.n - 1
	copy(z.in, z.in[z.pos:z.end])
	z.end, z.pos = z.end-z.pos, 0
	for empty := 0; z.end < n; {
		m, err := z.src.Read(z.in[z.end:inSize])
		z.end += m
		z.real = z.end
		switch {
		case err == io.EOF:
			clear(z.in[z.end : z.end+padding])
			z.end += padding
			return nil
		case err != nil:
			return err
		case m > 0:
			empty = 0
		default:
			if empty++; empty > emptyReadsMax {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}
