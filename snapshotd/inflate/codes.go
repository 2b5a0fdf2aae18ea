package inflate

import (
	"encoding/binary"
	"io"
)

// codes decompresses a block of codes, until it ends, or there is no room for
// more, or nothing more to read.
func (z *Reader) codes() error {
	if err := z.need(inSlack); err != nil {
		return err
	}
	var (
		in   = z.in[:z.end]
		out  = z.out
		pos  = z.pos
		w    = z.w
		bits = z.bits
		n    = z.n
		err  error

		literal  = &z.literal
		distance = &z.distance
		from     = z.from
	)
loop:
	for pos <= len(in)-inSlack && w < window+outSize {
		// 56 bits: two entries of literals, and a length.
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		e := literal[bits&(1<<literalRoot-1)]
		if e&isLiteral != 0 {
			bits >>= e & 63
			n -= uint(e & 63)
			out[w] = byte(e >> 8)
			w++
			e = literal[bits&(1<<literalRoot-1)]
			if e&isLiteral != 0 {
				bits >>= e & 63
				n -= uint(e & 63)
				out[w] = byte(e >> 8)
				w++
				e = literal[bits&(1<<literalRoot-1)]
				if e&isLiteral != 0 {
					bits >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 8)
					w++
					continue
				}
			}
		}
		if e&isSpecial != 0 {
			switch {
			case e&isSecond != 0:
				bits >>= literalRoot
				n -= literalRoot
				e = literal[uint64(e>>16)+bits&(1<<(e>>8&15)-1)]
				if e&isLiteral != 0 {
					bits >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 8)
					w++
					continue
				}
			}
			if e&isSpecial != 0 {
				if e&isEnd == 0 {
					err = ErrCorrupt
				}
				bits >>= e & 63
				n -= uint(e & 63)
				z.next = (*Reader).block
				break loop
			}
		}
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&31))
		bits >>= e & 63
		n -= uint(e & 63)

		// 28 bits: a distance.
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		e = distance[bits&(1<<distanceRoot-1)]
		if e&isSpecial != 0 {
			if e&isSecond != 0 {
				bits >>= distanceRoot
				n -= distanceRoot
				e = distance[uint64(e>>16)+bits&(1<<(e>>8&15)-1)]
			}
			if e&isSpecial != 0 {
				err = ErrCorrupt
				break loop
			}
		}
		back := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&31))
		bits >>= e & 63
		n -= uint(e & 63)
		if back > w-from {
			err = ErrCorrupt
			break loop
		}
		if back < 16 {
			w = repeat(out, w, back, length)
			continue
		}
		// Most are short: a loop would be a jump that nobody can foresee.
		end := w + length
		src := out[w-back:]
		dst := out[w:]
		*(*[16]byte)(dst) = *(*[16]byte)(src)
		if length > 16 {
			*(*[16]byte)(dst[16:]) = *(*[16]byte)(src[16:])
			for i := 32; i < length; i += 16 {
				*(*[16]byte)(dst[i:]) = *(*[16]byte)(src[i:])
			}
		}
		w = end
	}
	z.pos, z.w, z.bits, z.n = pos, w, bits&(1<<(n&63)-1), n
	if err == nil && pos-int(n>>3) > z.real {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// repeat is the copy of a match that is nearer than the step, 16.
func repeat(out []byte, w, back, length int) int {
	end := w + length
	from := w - back
	switch {
	case back >= 8:
		for w < end {
			binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			w += 8
			from += 8
		}
	case back == 1:
		word := uint64(out[from]) * 0x0101010101010101
		for w < end {
			binary.LittleEndian.PutUint64(out[w:], word)
			w += 8
		}
	default:
		for w < end {
			binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			w += back // what is behind it is wrong, and written again
		}
	}
	return end
}
