package journal

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	segmentSuffix = ".seg"
	badSuffix     = ".bad"
	stateName     = "stream"
	stateTemp     = "stream.new"
	segmentTemp   = "segment.new"

	// sizeMax is far more than a segment can have. A file system that is
	// damaged may say any size.
	sizeMax = 64 << 20
)

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

func parseSegmentName(name string) (first uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && first > 0
}

// ready sees to it that the newest segment takes records.
func (j *Journal) ready() error {
	j.mu.Lock()
	newest, closed := j.segments[len(j.segments)-1], j.closed
	j.mu.Unlock()
	switch {
	case closed:
		return errClosed()
	case j.spoilt, newest.size >= j.o.segmentBytes(), newest.size > headerSize && j.stale(newest):
		if err := j.rotate(); err != nil {
			return fault(err)
		}
		j.drop()
	}
	return nil
}

// stale says whether a segment is so old that it would keep what is too old for
// too long.
func (j *Journal) stale(s segment) bool {
	return j.o.Age > 0 && j.o.now().Sub(s.made) > j.o.Age/segmentAges
}

// rotate makes a new segment. It takes records when the disk knows it as the
// newest.
func (j *Journal) rotate() error {
	f, s, err := j.create(j.next)
	if err != nil {
		return err
	}
	if err := j.writeState(state{Epoch: j.epoch, Newest: s.first, Next: j.next}); err != nil {
		f.Close()
		return err
	}
	old := j.file
	j.file, j.spoilt = f, false
	j.mu.Lock()
	replaced := len(j.segments) > 0 && j.segments[len(j.segments)-1].first == s.first
	var size int64
	if replaced { // the one before it has no record
		j.segments = j.segments[:len(j.segments)-1]
	} else if len(j.segments) > 0 {
		size = j.segments[len(j.segments)-1].size
	}
	j.segments = append(j.segments, s)
	j.mu.Unlock()
	if old == nil {
		return nil
	}
	if !replaced {
		if err := old.Truncate(size); err != nil {
			j.o.Log.Warn("a segment of the event stream keeps its reserve", "err", err)
		}
	}
	old.Close()
	return nil
}

// create makes the file of a segment, or makes anew one that has no record: the
// state may say that this one is the newest, so that there is always one of its
// name.
func (j *Journal) create(first uint64) (_ file, _ segment, err error) {
	// A clock that was set back makes no segment older than what is before it.
	h := header{epoch: j.epoch, first: first, made: later(j.o.now(), j.latest)}
	if err := j.disk.Remove(segmentTemp); err != nil && !isMissing(err) {
		return nil, segment{}, err
	}
	f, err := j.disk.Create(segmentTemp)
	if err != nil {
		return nil, segment{}, err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = j.disk.Remove(segmentTemp) // the next one removes it otherwise
		}
	}()
	if err := f.Reserve(j.o.segmentBytes() + headerSize); err != nil {
		return nil, segment{}, err
	}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return nil, segment{}, err
	}
	if err := f.Sync(); err != nil {
		return nil, segment{}, err
	}
	if err := j.disk.Rename(segmentTemp, segmentName(first)); err != nil {
		return nil, segment{}, err
	}
	if err := j.disk.Sync(); err != nil {
		return nil, segment{}, err
	}
	return f, segment{first: first, made: h.made, size: headerSize}, nil
}

// noteTime is between two notes of what is on the disk.
const noteTime = 10 * time.Second

// Retain drops what is too old or too much, and notes how far the stream is. It is
// called now and then, as nothing may be appended for long. A disk that is full
// keeps nothing from going.
func (j *Journal) Retain() error {
	return j.exclusive(func() error {
		err := j.ready()
		j.drop()
		if err != nil {
			return err
		}
		if now := j.o.now(); now.Sub(j.notedAt) >= noteTime {
			j.notedAt = now
			j.note()
		}
		return nil
	})
}

// note writes down what is on the disk: what Open does not find of that is lost,
// and was not merely on its way.
func (j *Journal) note() {
	if j.next == j.noted {
		return
	}
	j.mu.Lock()
	newest := j.segments[len(j.segments)-1].first
	j.mu.Unlock()
	if err := j.writeState(state{Epoch: j.epoch, Newest: newest, Next: j.next}); err != nil {
		j.o.Log.Warn("how far the event stream is cannot be written down", "err", err)
	}
}

// drop removes the oldest segments that are not to be kept.
func (j *Journal) drop() {
	for {
		j.mu.Lock()
		if len(j.segments) < 2 || !j.tooMuchLocked() && !j.tooOldLocked() {
			j.mu.Unlock()
			return
		}
		first := j.segments[0].first
		j.segments = j.segments[1:]
		j.mu.Unlock()
		// Names come back after a power failure, at worst.
		if err := j.disk.Remove(segmentName(first)); err != nil && !isMissing(err) {
			j.o.Log.Warn("a segment of the event stream that is too old stays", "segment", segmentName(first), "err", err)
		}
	}
}

func (j *Journal) tooMuchLocked() bool {
	var bytes int64
	for _, s := range j.segments {
		bytes += s.size
	}
	return bytes > j.o.Bytes
}

// tooOldLocked is about the oldest segment. What is in it was taken in before the
// next was made.
func (j *Journal) tooOldLocked() bool {
	latest := j.segments[0].latest
	if latest.IsZero() {
		latest = j.segments[1].made
	}
	return j.o.Age > 0 && j.o.now().Sub(latest) > j.o.Age
}

// load reads the header of a segment.
func (j *Journal) load(first uint64) (segment, error) {
	name := segmentName(first)
	f, err := j.disk.Open(name)
	if isStrange(err) {
		return segment{}, fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss)
	}
	if err != nil {
		return segment{}, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return segment{}, err
	}
	b := make([]byte, headerSize)
	if _, err := readAt(f, b, 0); err != nil && size >= headerSize {
		return segment{}, err
	}
	h, err := decodeHeader(b)
	if err != nil {
		return segment{}, err
	}
	if h.first != first || h.epoch != j.epoch {
		return segment{}, fmt.Errorf("it is segment %d of stream %s: %w", h.first, h.epoch, errForeign)
	}
	return segment{first: first, made: h.made, size: min(size, sizeMax)}, nil
}
