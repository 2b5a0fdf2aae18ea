package inflate

import (
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Flags of a member's header.
const (
	hasSum     = 1 << 1
	hasExtra   = 1 << 2
	hasName    = 1 << 3
	hasComment = 1 << 4
)

// textMax is how long a name or comment may be, its zero included; that of
// compress/gzip.
const textMax = 512

// align drops the bits up to the next byte, and gives back what was read ahead.
func (z *Reader) align() {
	z.pos -= int(z.n >> 3)
	z.bits, z.n = 0, 0
}

// take returns the next n bytes, at most headerMax, of an aligned stream.
func (z *Reader) take(n int) ([]byte, error) {
	if err := z.need(n); err != nil {
		return nil, err
	}
	b := z.in[z.pos : z.pos+n]
	if z.pos += n; z.pos > z.real {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// member begins a member, if there is one more.
func (z *Reader) member() error {
	if err := z.need(1); err != nil {
		return err
	}
	if z.pos == z.real {
		return io.EOF
	}
	h, err := z.take(10)
	if err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return gzip.ErrHeader
	}
	flags, sum := h[3], crc32.ChecksumIEEE(h)
	if flags&hasExtra != 0 {
		if sum, err = z.skipExtra(sum); err != nil {
			return err
		}
	}
	for _, text := range []byte{hasName, hasComment} {
		if flags&text == 0 {
			continue
		}
		if sum, err = z.skipText(sum); err != nil {
			return err
		}
	}
	if flags&hasSum != 0 {
		b, err := z.take(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != uint16(sum) {
			return gzip.ErrHeader
		}
	}
	z.from, z.sum, z.size, z.final = z.w, 0, 0, false
	z.next = (*Reader).block
	return nil
}

func (z *Reader) skipExtra(sum uint32) (uint32, error) {
	b, err := z.take(2)
	if err != nil {
		return 0, err
	}
	sum = crc32.Update(sum, crc32.IEEETable, b)
	for left := int(binary.LittleEndian.Uint16(b)); left > 0; left -= len(b) {
		if b, err = z.take(min(left, headerMax)); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, crc32.IEEETable, b)
	}
	return sum, nil
}

func (z *Reader) skipText(sum uint32) (uint32, error) {
	for range textMax {
		b, err := z.take(1)
		if err != nil {
			return 0, err
		}
		if sum = crc32.Update(sum, crc32.IEEETable, b); b[0] == 0 {
			return sum, nil
		}
	}
	return 0, gzip.ErrHeader
}

// trailer ends a member.
func (z *Reader) trailer() error {
	z.account()
	z.align()
	b, err := z.take(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != z.sum || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return gzip.ErrChecksum
	}
	z.next = (*Reader).member
	return nil
}
