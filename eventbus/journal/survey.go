package journal

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// An end is where the newest segment stops to make sense.
type end struct {
	size   int64
	next   uint64
	latest time.Time
	torn   bool // there is something behind it that was never finished
}

// survey reads the newest segment. Behind a record that is damaged there may be
// good ones: if one of them was written when the damaged one was on the disk, or
// the state with its next, it has been damaged since, and they count. Otherwise
// all that is behind was never finished.
func survey(f file, s segment, next uint64) (end, error) {
	b := make([]byte, s.size)
	if n, err := readAt(f, b, 0); err != nil && !errors.Is(err, io.EOF) || int64(n) < headerSize {
		return end{}, err
	}
	at := end{size: headerSize, next: s.first, latest: s.made}
	var cuts []end             // before each damage
	synced := max(next, 1) - 1 // and what is known to have been on the disk
	off := headerSize
	for off < len(b) {
		r, state := decode(b[off:])
		if state == whole && r.Sequence >= at.next {
			off += r.size
			at = end{size: int64(off), next: r.Sequence + 1, latest: later(at.latest, r.Time)}
			synced = max(synced, r.synced)
			continue
		}
		cuts = append(cuts, at)
		skip := seek(b[off:], at.next-1)
		if skip < 0 {
			break
		}
		off += skip
	}
	for _, c := range cuts {
		if synced < c.next {
			c.torn = len(bytes.TrimRight(b[c.size:], "\x00")) > 0
			return c, nil
		}
	}
	return at, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
