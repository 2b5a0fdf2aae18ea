package inflate

import (
	"encoding/binary"
	"io"
)

// refill makes the counted bits 56 at least. The caller has needed the bytes.
func (z *Reader) refill() {
	z.bits |= binary.LittleEndian.Uint64(z.in[z.pos:]) << (z.n & 63)
	z.pos += int((63 - z.n) >> 3)
	z.n |= 56
}

// use takes n bits, of which there are enough.
func (z *Reader) use(n uint) int {
	v := z.bits & (1<<n - 1)
	z.bits >>= n
	z.n -= n
	return int(v)
}

// block begins a block.
func (z *Reader) block() error {
	if z.final {
		z.next = (*Reader).trailer
		return nil
	}
	if err := z.need(headerMax); err != nil {
		return err
	}
	z.refill()
	z.final = z.use(1) == 1
	switch z.use(2) {
	case 0:
		return z.beginStored()
	case 1:
		return z.beginFixed()
	case 2:
		return z.beginDynamic()
	}
	return ErrCorrupt
}

func (z *Reader) beginStored() error {
	z.align()
	b, err := z.take(4)
	if err != nil {
		return err
	}
	size, inverse := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
	if size != ^inverse {
		return ErrCorrupt
	}
	z.stored = int(size)
	z.next = (*Reader).copyStored
	return nil
}

// copyStored copies what there is of a stored block, and room for.
func (z *Reader) copyStored() error {
	if z.stored == 0 {
		z.next = (*Reader).block
		return nil
	}
	if err := z.need(1); err != nil {
		return err
	}
	if z.pos >= z.real {
		return io.ErrUnexpectedEOF
	}
	n := copy(z.out[z.w:window+outSize], z.in[z.pos:min(z.real, z.pos+z.stored)])
	z.pos += n
	z.w += n
	z.stored -= n
	return nil
}

// beginFixed makes the tables of the code that needs no header.
func (z *Reader) beginFixed() error {
	var lengths [literals]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	z.literals.build(lengths[:])
	for i := range lengths[:distances] {
		lengths[i] = 5
	}
	z.distances.build(lengths[:distances])
	z.next = (*Reader).codes
	return nil
}

// metaOrder is the order of the lengths of the codes of lengths.
var metaOrder = [metas]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// beginDynamic reads the tables of a block, all of which need has seen to.
func (z *Reader) beginDynamic() error {
	nl, nd, nm := 257+z.use(5), 1+z.use(5), 4+z.use(4)
	if nl > literals-2 || nd > distances-2 {
		return ErrCorrupt
	}
	var lengths [literals + distances]uint8
	for i, at := range metaOrder[:nm] {
		if i%16 == 0 {
			z.refill()
		}
		lengths[at] = uint8(z.use(3))
	}
	if !z.metas.build(lengths[:metas]) {
		return ErrCorrupt
	}
	clear(lengths[:metas])
	for i := 0; i < nl+nd; {
		z.refill()
		e := z.meta[z.bits&(1<<metaRoot-1)]
		if e&isSpecial != 0 {
			return ErrCorrupt
		}
		z.use(uint(e & 63))
		symbol := uint8(e >> 16)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		times, length := 0, uint8(0)
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			times, length = 3+z.use(2), lengths[i-1]
		case 17:
			times = 3 + z.use(3)
		case 18:
			times = 11 + z.use(7)
		}
		if i+times > nl+nd {
			return ErrCorrupt
		}
		for range times {
			lengths[i] = length
			i++
		}
	}
	if !z.literals.build(lengths[:nl]) || !z.distances.build(lengths[nl:nl+nd]) {
		return ErrCorrupt
	}
	z.next = (*Reader).codes
	return nil
}
