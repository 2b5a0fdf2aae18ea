package journal

import (
	"errors"
	"io"
	"slices"
)

const (
	readMax   = 64       // records at once, of our own
	readBytes = 64 << 10 // from a file at once; more where a record is larger
)

// A Reader reads records from a sequence on. What is damaged or no longer there
// it passes over: then a sequence is not the one after the last. Between two
// calls it holds nothing but its place.
type Reader struct {
	j     *Journal
	next  uint64
	file  file
	first uint64 // of the segment that it is in
	until uint64 // sequences of it are below that; 0 if it is the newest
	floor uint64 // and from this on, here
	off   int64
	ahead []byte // what was read already, from off on
}

// Reader returns one that begins at a sequence.
func (j *Journal) Reader(from uint64) *Reader { return &Reader{j: j, next: from} }

// Next returns the records that come next, at most n, and no more when they have
// 64 KiB, or none if there are no more yet.
func (r *Reader) Next(n int) ([]Record, error) {
	defer r.close()
	for {
		if r.file == nil {
			more, err := r.enter()
			if err != nil || !more {
				return nil, err
			}
		}
		records, err := r.read(n)
		if err != nil || len(records) > 0 {
			return records, err
		}
		if _, last := r.j.Bounds(); r.next > last {
			return nil, nil
		}
		if !r.leave() {
			return nil, nil
		}
	}
}

func (r *Reader) close() {
	if r.file != nil {
		r.file.Close()
		r.file, r.ahead = nil, nil
	}
}

// enter opens the segment that has the next record, or the one after it.
func (r *Reader) enter() (more bool, err error) {
	for {
		first, until, ok := r.j.segmentOf(r.next)
		if !ok {
			return false, nil
		}
		r.file, err = r.j.disk.Open(segmentName(first))
		if isMissing(err) {
			// It was dropped, or somebody took it away.
			if now, _ := r.j.Bounds(); now > first {
				continue
			}
			if until == 0 {
				return false, err
			}
			r.next = until
			continue
		}
		if err != nil {
			return false, err
		}
		if first != r.first {
			r.first, r.floor, r.off = first, first, headerSize
		}
		r.until = until
		return true, nil
	}
}

// leave closes a segment that has no more. It is false if it is the newest. One
// that was the newest when it was read is read again: it may have got more
// before the next was made.
func (r *Reader) leave() bool {
	first, until, ok := r.j.segmentOf(r.first)
	if ok && first == r.first && until == 0 {
		return false
	}
	whole := r.until > 0
	r.close()
	if ok && first == r.first && whole {
		r.next = max(r.next, until)
	}
	return true
}

// segmentOf returns the segment that has a sequence, or the oldest after it. ok
// is false if there is no record of that sequence or later.
func (j *Journal) segmentOf(sequence uint64) (first, until uint64, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if sequence > j.last {
		return 0, 0, false
	}
	for i, s := range slices.Backward(j.segments) {
		if s.first <= sequence || i == 0 {
			return s.first, until, true
		}
		until = s.first
	}
	return 0, 0, false
}

// read returns what the open segment has, from the next record on.
func (r *Reader) read(n int) ([]Record, error) {
	limit := r.limit()
	var records []Record
	for bytes := 0; len(records) < n && bytes < readBytes && r.next < limit; {
		f, ok, err := r.one(limit)
		if err != nil || !ok {
			return records, err
		}
		if f.Sequence >= r.next {
			bytes += f.size
			records = append(records, f.Record)
			r.next = f.Sequence + 1
		}
	}
	return records, nil
}

// limit is below which sequences the open segment's records are, and on the disk.
func (r *Reader) limit() uint64 {
	_, last := r.j.Bounds()
	if first, until, ok := r.j.segmentOf(r.first); ok && first == r.first && until > 0 {
		r.until = until
	}
	if r.until > 0 {
		return min(r.until, last+1)
	}
	return last + 1
}

// one returns the record that comes next in the open segment, below limit.
func (r *Reader) one(limit uint64) (found, bool, error) {
	for {
		f, state := decode(r.ahead)
		if state == short {
			more, err := r.fill()
			if err != nil {
				return found{}, false, err
			}
			if more {
				continue
			}
		}
		if state == whole && f.Sequence >= limit {
			return found{}, false, nil
		}
		if state == whole && f.Sequence >= r.floor {
			r.pass(f.size)
			r.floor = f.Sequence + 1
			return f, true, nil
		}
		skip, err := r.skip()
		if err != nil || skip == 0 {
			return found{}, false, err
		}
		r.pass(skip)
	}
}

// fill reads more of what is ahead. Records share its memory.
func (r *Reader) fill() (more bool, err error) {
	b := make([]byte, len(r.ahead)+readBytes)
	had := copy(b, r.ahead)
	got, err := readAt(r.file, b[had:], r.off+int64(had))
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	r.ahead = b[:had+got]
	return got > 0, nil
}

func (r *Reader) pass(n int) {
	r.off += int64(n)
	r.ahead = r.ahead[min(n, len(r.ahead)):]
}

// skip returns how far the next good record is from a place that has none, or 0
// if there is none in this segment.
func (r *Reader) skip() (int, error) {
	size, err := r.file.Size()
	if err != nil || size <= r.off {
		return 0, err
	}
	b := make([]byte, min(size, sizeMax+recordMax)-min(r.off, sizeMax))
	got, err := readAt(r.file, b, r.off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return max(seek(b[:got], r.floor-1), 0), nil
}
