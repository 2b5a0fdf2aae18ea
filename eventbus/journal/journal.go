package journal

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Options say where a journal is and what it keeps.
type Options struct {
	Dir   string
	Bytes int64         // the oldest segments go when all are larger
	Age   time.Duration // and when all that is in them is older
	Log   *slog.Logger

	// Told is given what was appended, in order, when it is on the disk and
	// before Append returns. It may be nil.
	Told func([]Record)

	// Of tests.
	disk    disk
	now     func() time.Time
	segment int64
}

const (
	segmentMin = 256 << 10
	segmentMax = 8 << 20

	// segmentAges is how many segments an age is divided into at least.
	segmentAges = 8
)

// segmentBytes is when a segment is full.
func (o Options) segmentBytes() int64 {
	if o.segment > 0 {
		return o.segment
	}
	return min(max(o.Bytes/16, segmentMin), segmentMax)
}

// A segment is a file of records. Those of all but the newest do not change.
type segment struct {
	first  uint64
	made   time.Time
	latest time.Time // when the newest record was taken in; zero if that is not known
	size   int64     // bytes in use
}

// A Journal is one that is open.
type Journal struct {
	o     Options
	disk  disk
	epoch string

	// These are the leader's; see append.go.
	file    file // the newest segment
	next    uint64
	latest  time.Time // of the newest record; times do not go back
	known   ids
	buffer  []byte
	spoilt  bool      // the newest segment takes no more, as a write to it failed
	noted   uint64    // next of the state
	notedAt time.Time // when it was told so

	// mu guards the fields below it.
	mu       sync.Mutex
	segments []segment // oldest first; never empty
	last     uint64    // sequence of the newest record that is on the disk
	queue    []*entry  // who waits
	leading  bool      // somebody leads
	closed   bool
}

// Open opens the journal in a directory, or makes one. The caller sees to it that
// no other process has it.
func Open(o Options) (*Journal, error) {
	if o.now == nil {
		o.now = time.Now
	}
	if o.disk == nil {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, err
		}
		if err := directory(filepath.Dir(o.Dir)).Sync(); err != nil {
			return nil, err
		}
		o.disk = directory(o.Dir)
	}
	j := &Journal{o: o, disk: o.disk}
	if err := j.open(); err != nil {
		if j.file != nil {
			j.file.Close()
		}
		return nil, fmt.Errorf("journal %s: %w", o.Dir, err)
	}
	return j, nil
}

// Epoch is the name of the stream: another one if it had to begin anew.
func (j *Journal) Epoch() string { return j.epoch }

// newEpoch makes one up.
func newEpoch() string {
	var b [epochSize / 2]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// A Stat is what a journal has.
type Stat struct {
	First, Last uint64 // sequences; if nothing is kept, First is Last+1
	Bytes       int64
	Oldest      time.Time // when the first was taken in; zero if there is none
}

// Stat says what is there.
func (j *Journal) Stat() Stat {
	j.mu.Lock()
	s := Stat{First: j.segments[0].first, Last: j.last}
	for _, g := range j.segments {
		s.Bytes += g.size
	}
	j.mu.Unlock()
	r := j.Reader(s.First)
	if records, err := r.Next(1); err == nil && len(records) > 0 {
		s.First, s.Oldest = records[0].Sequence, records[0].Time
	} else if err == nil {
		s.First = s.Last + 1
	}
	return s
}

// Bounds are the sequences of the oldest record that may be kept, and of the
// newest.
func (j *Journal) Bounds() (first, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segments[0].first, j.last
}

// Since returns the sequence of the first kept record that was taken in at t or
// later, or the one that comes next.
func (j *Journal) Since(t time.Time) (uint64, error) {
	j.mu.Lock()
	from, next := j.segments[0].first, j.last+1
	for _, g := range j.segments[1:] {
		// What is before it was taken in by the time it was made.
		if !g.made.Before(t) {
			break
		}
		from = g.first
	}
	j.mu.Unlock()
	r := j.Reader(from)
	for {
		records, err := r.Next(readMax)
		if err != nil {
			return 0, err
		}
		if len(records) == 0 {
			return max(next, r.next), nil
		}
		for _, found := range records {
			if !found.Time.Before(t) {
				return found.Sequence, nil
			}
		}
	}
}

// Close ends it. Appends that come later are [errdefs.ErrUnavailable].
func (j *Journal) Close() error {
	return j.exclusive(func() error {
		j.mu.Lock()
		j.closed = true
		size := j.segments[len(j.segments)-1].size
		j.mu.Unlock()
		j.note()
		// What was reserved is not needed while nobody appends.
		if !j.spoilt {
			if err := j.file.Truncate(size); err != nil {
				j.o.Log.Warn("the event stream's segment keeps its reserve", "err", err)
			}
		}
		return j.file.Close()
	})
}

func errClosed() error { return fmt.Errorf("journal is closed: %w", errdefs.ErrUnavailable) }
