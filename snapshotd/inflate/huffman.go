package inflate

import "math/bits"

const (
	literals  = 288 // symbols of literals and lengths; the last two mean nothing
	distances = 32  // symbols of distances; the last two mean nothing
	metas     = 19  // symbols of lengths of codes
	endBlock  = 256

	codeMax = 15 // the longest code, in bits

	// A code is looked up by this many of its bits; what is longer goes on in
	// a second table behind the first.
	literalRoot  = 11
	distanceRoot = 8
	metaRoot     = 7

	// The most entries that any code makes of so many symbols with such a
	// root, as zlib's enough.c counts them.
	literalSize  = 2342
	distanceSize = 402
)

// An entry tells what the next bits mean. Its lowest 6 bits say how many they
// are, those behind a code included. Above them it is one of
//
//	a literal  in bits 8-15
//	a number   the least length or distance in bits 16-30; how many of the bits
//	           are the code, in bits 8-12: the others are added to the number
//	special    the end of the block; a second table, whose place is in bits
//	           16-30 and whose root in bits 8-12; or, with neither bit, nothing
type entry uint32

const (
	isLiteral entry = 1 << 31
	isSpecial entry = 1 << 15
	isEnd     entry = 1 << 14
	isSecond  entry = 1 << 13
	noCode          = isSpecial
)

// What symbols mean: RFC 1951, 3.2.5.
var (
	lengthBase = [...]uint16{
		3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31,
		35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258,
	}
	lengthExtra = [...]uint8{
		0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2,
		3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
	}
	distanceBase = [...]uint16{
		1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193,
		257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
	}
	distanceExtra = [...]uint8{
		0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6,
		7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13,
	}
)

// literalEntry is what a symbol means, but for the bits of its code.
func literalEntry(symbol int) entry {
	switch i := symbol - endBlock - 1; {
	case symbol < endBlock:
		return isLiteral | entry(symbol)<<8
	case symbol == endBlock:
		return isSpecial | isEnd
	case i < len(lengthBase):
		return entry(lengthBase[i])<<16 | entry(lengthExtra[i])
	}
	return noCode
}

func distanceEntry(symbol int) entry {
	if symbol < len(distanceBase) {
		return entry(distanceBase[symbol])<<16 | entry(distanceExtra[symbol])
	}
	return noCode
}

func metaEntry(symbol int) entry { return entry(symbol) << 16 }

// withCode is e behind a code of n bits.
func (e entry) withCode(n int) entry {
	if e&(isLiteral|isSpecial) == 0 {
		e |= entry(n) << 8
	}
	return e + entry(n)
}

// A table is how a code is looked up.
type table struct {
	entries []entry
	root    int
	meaning func(symbol int) entry
}

// build makes the table of the code whose symbols' codes have these lengths. It
// tells whether that is a code: one that is complete, or has no symbol, or one
// symbol of one bit. Which of these compress/flate takes, this one does.
func (t *table) build(lengths []uint8) bool {
	var count [codeMax + 1]int
	for _, n := range lengths {
		count[n]++
	}
	longest := codeMax
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	left, used := 1, 0
	var first [codeMax + 1]int // place in sorted of the first of each length
	for n := 1; n <= longest; n++ {
		if left = left<<1 - count[n]; left < 0 {
			return false
		}
		first[n] = used
		used += count[n]
	}
	if longest == 0 || left > 0 {
		if used > 1 || longest > 1 {
			return false
		}
		for i := range t.entries[:1<<t.root] {
			t.entries[i] = noCode
		}
	}
	var sorted [literals]uint16 // by length, then by symbol: the order of codes
	for symbol, n := range lengths {
		if n != 0 {
			sorted[first[n]] = uint16(symbol)
			first[n]++
		}
	}
	count[0] = 0
	t.place(sorted[:used], lengths, &count, longest)
	return true
}

// place enters the symbols, given in the order of their codes.
func (t *table) place(sorted []uint16, lengths []uint8, count *[codeMax + 1]int, longest int) {
	var (
		size   = 1 << t.root
		free   = size // where the next second table goes
		prefix = -1   // of the codes in the second table that is being filled
		second []entry
		code   = 0
		n      = 0
	)
	for _, symbol := range sorted {
		length := int(lengths[symbol])
		code <<= length - n
		n = length
		reversed := int(bits.Reverse16(uint16(code))) >> (16 - n)
		code++
		if n <= t.root {
			e := t.meaning(int(symbol)).withCode(n)
			for i := reversed; i < size; i += 1 << n {
				t.entries[i] = e
			}
			count[n]--
			continue
		}
		if p := reversed & (size - 1); p != prefix {
			// As long as the codes that begin alike are: those that follow,
			// until they fill it.
			prefix = p
			width := n - t.root
			for left := 1<<width - count[n]; left > 0 && t.root+width < longest; {
				width++
				left = left<<1 - count[t.root+width]
			}
			second = t.entries[free : free+1<<width]
			t.entries[prefix] = isSpecial | isSecond | entry(free)<<16 | entry(width)<<8 | entry(t.root)
			free += 1 << width
		}
		e := t.meaning(int(symbol)).withCode(n - t.root)
		for i := reversed >> t.root; i < len(second); i += 1 << (n - t.root) {
			second[i] = e
		}
		count[n]--
	}
}
