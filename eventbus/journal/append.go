package journal

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// A turn of the leader.
const (
	turnRecords = 4096
	turnBytes   = 1 << 20
)

// An entry is somebody who waits: for records to be on the disk, or for do to be
// done while nobody writes.
type entry struct {
	records []Record
	do      func() error

	sequences []uint64
	err       error
	wake      chan bool // true: lead; false: it is done
}

// Append returns the sequences of records when they are on the disk. A record
// whose id is known keeps the sequence that it has. A record that is too large is
// [errdefs.ErrInvalidArgument], and none of them is taken then. A disk that is
// full is [errdefs.ErrResourceExhausted], and one that fails
// [errdefs.ErrUnavailable]: nobody is told of them, and they may be appended
// again.
func (j *Journal) Append(records ...Record) ([]uint64, error) {
	for _, r := range records {
		if len(r.ID) > IDMax || len(r.Body) > BodyMax {
			return nil, fmt.Errorf("a record with an id of %d and a body of %d bytes is too large: %w", len(r.ID), len(r.Body), errdefs.ErrInvalidArgument)
		}
	}
	e := &entry{records: records}
	j.join(e)
	return e.sequences, e.err
}

// exclusive does something while nobody writes.
func (j *Journal) exclusive(do func() error) error {
	e := &entry{do: do}
	j.join(e)
	return e.err
}

// join waits for its turn, or for a leader that took e along.
func (j *Journal) join(e *entry) {
	e.wake = make(chan bool, 1)
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		e.err = errClosed()
		return
	}
	j.queue = append(j.queue, e)
	if j.leading {
		j.mu.Unlock()
		if lead := <-e.wake; !lead {
			return
		}
		j.mu.Lock()
	}
	j.leading = true
	turn := j.queue
	j.queue = nil
	j.mu.Unlock()

	j.lead(turn)

	j.mu.Lock()
	j.leading = len(j.queue) > 0
	if j.leading {
		j.queue[0].wake <- true
	}
	j.mu.Unlock()
}

// lead serves who waits. Its own entry is among them.
func (j *Journal) lead(turn []*entry) {
	for len(turn) > 0 {
		n, records, bytes := 0, 0, 0
		for _, e := range turn {
			for _, r := range e.records {
				bytes += len(r.Body)
			}
			records += len(e.records)
			if n > 0 && (e.do != nil || records > turnRecords || bytes > turnBytes) {
				break
			}
			if n++; e.do != nil {
				break
			}
		}
		if do := turn[0].do; do != nil {
			turn[0].err = do()
		} else {
			j.write(turn[:n])
		}
		for _, e := range turn[:n] {
			e.wake <- false
		}
		turn = turn[n:]
	}
}

// write appends what entries have, with one sync.
func (j *Journal) write(entries []*entry) {
	err := j.ready()
	if err == nil {
		err = j.writeAll(entries)
	}
	if err != nil {
		for _, e := range entries {
			e.sequences, e.err = nil, err
		}
	}
}

// writeAll encodes and writes. If it fails it is as if it had never been called.
func (j *Journal) writeAll(entries []*entry) error {
	began, latest, now := j.next, j.latest, j.o.now()
	var told []Record
	var ids []id                 // of told
	fresh := make(map[id]uint64) // the same, not known before they are on the disk
	b := j.buffer[:0]
	j.mu.Lock()
	synced, off := j.last, j.segments[len(j.segments)-1].size
	closed := j.closed
	j.mu.Unlock()
	if closed {
		return errClosed()
	}
	for _, e := range entries {
		e.sequences = make([]uint64, len(e.records))
		for i, r := range e.records {
			id := idOf(r.ID)
			sequence, ok := j.known.find(id)
			if !ok {
				sequence, ok = fresh[id]
			}
			if ok {
				e.sequences[i] = sequence
				continue
			}
			r.Sequence = j.next
			if now.After(j.latest) {
				j.latest = now
			}
			r.Time = j.latest
			fresh[id] = r.Sequence
			j.next++
			e.sequences[i] = r.Sequence
			b = appendRecord(b, r, synced)
			told, ids = append(told, r), append(ids, id)
		}
	}
	if cap(b) <= 4*turnBytes {
		j.buffer = b
	}
	if len(told) == 0 {
		return nil
	}
	if err := j.put(b, off); err != nil {
		j.next, j.latest = began, latest
		j.takeBack(off)
		return fault(err)
	}
	for i, id := range ids {
		j.known.add(id, told[i].Sequence)
	}
	j.mu.Lock()
	j.last = j.next - 1
	newest := &j.segments[len(j.segments)-1]
	newest.size, newest.latest = off+int64(len(b)), j.latest
	j.mu.Unlock()
	if j.o.Told != nil {
		j.o.Told(told)
	}
	return nil
}

func (j *Journal) put(b []byte, off int64) error {
	if _, err := j.file.WriteAt(b, off); err != nil {
		return err
	}
	return j.file.Sync()
}

// takeBack removes what a write that failed may have left. After a sync that
// failed nobody knows what the disk has, so that the segment takes no more.
func (j *Journal) takeBack(off int64) {
	j.spoilt = true
	if err := j.file.Truncate(off); err != nil {
		j.o.Log.Error("the event stream cannot take back what it did not write whole", "err", err)
	}
}

// fault gives an error of the disk its kind.
func fault(err error) error {
	if isFull(err) {
		return fmt.Errorf("event stream: %v: %w", err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("event stream: %v: %w", err, errdefs.ErrUnavailable)
}

// idsMax is how many ids are known, and idsTime how far back Open looks for them.
const (
	idsTime = time.Hour
	idsMax  = 1 << 16
)

type id [16]byte

func idOf(s string) id {
	sum := sha256.Sum256([]byte(s))
	return id(sum[:16])
}

// ids are those of the latest records.
type ids struct {
	sequences map[id]uint64
	order     []id // a ring, oldest at begin
	begin     int
}

func (k *ids) find(i id) (uint64, bool) {
	s, ok := k.sequences[i]
	return s, ok
}

func (k *ids) add(i id, sequence uint64) {
	if k.sequences == nil {
		k.sequences = make(map[id]uint64)
	}
	k.sequences[i] = sequence
	if len(k.order) < idsMax {
		k.order = append(k.order, i)
		return
	}
	delete(k.sequences, k.order[k.begin])
	k.order[k.begin] = i
	k.begin = (k.begin + 1) % idsMax
}
