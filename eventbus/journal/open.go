package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

var errForeign = fmt.Errorf("of another stream: %w", errdefs.ErrDataLoss)

// A state says which stream a directory has.
type state struct {
	Epoch  string `json:"epoch"`
	Newest uint64 `json:"newest_segment"` // or one before it

	// Next is a sequence below which every record was on the disk when this
	// was written. It may have been told.
	Next uint64 `json:"next"`
}

// readState is false if there is none that says anything.
func (j *Journal) readState() (s state, ok bool, err error) {
	b, err := j.disk.ReadFile(stateName)
	if isMissing(err) || isStrange(err) {
		return state{}, false, nil
	}
	if err != nil {
		return state{}, false, err
	}
	if json.Unmarshal(b, &s) != nil || len(s.Epoch) != epochSize {
		return state{}, false, nil
	}
	return s, true, nil
}

func (j *Journal) writeState(s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := j.disk.Remove(stateTemp); err != nil && !isMissing(err) {
		return err
	}
	f, err := j.disk.Create(stateTemp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := j.disk.Rename(stateTemp, stateName); err != nil {
		return err
	}
	if err := j.disk.Sync(); err != nil {
		return err
	}
	j.noted = s.Next
	return nil
}

// open finds the stream that is there, or makes one.
func (j *Journal) open() error {
	names, err := j.disk.List()
	if err != nil {
		return err
	}
	var firsts []uint64
	for _, name := range names {
		if first, ok := parseSegmentName(name); ok {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	s, ok, err := j.readState()
	if err != nil {
		return err
	}
	if !ok {
		if len(firsts) > 0 || slices.Contains(names, stateName) {
			return j.anew("it does not say which stream it is")
		}
		return j.begin()
	}
	j.epoch = s.Epoch
	return j.openStream(s, firsts)
}

// begin makes the first segment of a new stream.
func (j *Journal) begin() error {
	j.epoch, j.next = newEpoch(), 1
	if err := j.writeState(state{Epoch: j.epoch, Next: 1}); err != nil {
		return err
	}
	j.o.Log.Info("made the event stream", "epoch", j.epoch)
	return j.rotate()
}

// anew puts a stream aside whose last sequence nobody knows, and begins another.
func (j *Journal) anew(why string) error {
	j.o.Log.Error("the event stream is damaged: a new one begins, and the old one is put aside", "dir", j.o.Dir, "why", why)
	names, err := j.disk.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, badSuffix) {
			if err := j.disk.Remove(name); err != nil {
				return err
			}
		}
	}
	// What says which stream it is comes last among the names.
	for _, name := range names {
		if _, ok := parseSegmentName(name); ok || name == stateName {
			if err := j.disk.Rename(name, name+badSuffix); err != nil {
				return err
			}
		}
	}
	if err := j.disk.Sync(); err != nil {
		return err
	}
	j.segments = nil
	return j.begin()
}

// openStream opens the stream that s says.
func (j *Journal) openStream(s state, firsts []uint64) error {
	for _, first := range firsts {
		g, err := j.load(first)
		switch {
		case err == nil:
			j.segments = append(j.segments, g)
		case !errdefs.IsDataLoss(err):
			return err
		case first > s.Newest:
			// It was being made, and takes records only when the state says so.
			if err := j.disk.Remove(segmentName(first)); err != nil {
				return err
			}
		case first == s.Newest:
			return j.anew(fmt.Sprintf("segment %d: %v", first, err))
		default:
			j.o.Log.Error("a segment of the event stream is damaged: its events are lost", "segment", segmentName(first), "err", err)
			if err := j.disk.Rename(segmentName(first), segmentName(first)+badSuffix); err != nil {
				return err
			}
		}
	}
	n := len(j.segments)
	if n == 0 && s.Newest == 0 {
		j.next = 1
		return j.rotate() // it ended before its first segment
	}
	if n == 0 || j.segments[n-1].first < s.Newest {
		return j.anew(fmt.Sprintf("segment %d is missing", s.Newest))
	}
	return j.resume(s)
}

// resume goes on in the newest segment.
func (j *Journal) resume(s state) error {
	newest := &j.segments[len(j.segments)-1]
	f, err := j.disk.Open(segmentName(newest.first))
	if err != nil {
		return err
	}
	j.file = f
	end, err := survey(f, *newest, s.Next)
	if err != nil {
		return err
	}
	j.next, j.latest, newest.latest, newest.size = end.next, end.latest, end.latest, end.size
	if end.torn {
		j.o.Log.Warn("the event stream ended within a record: what was never acknowledged is cut off", "sequence", end.next)
	}
	if s.Next > j.next {
		j.o.Log.Error("the end of the event stream is lost", "from", end.next, "to", s.Next-1)
		j.next = s.Next
	}
	j.noted = s.Next
	// What is there is on the disk from here on, whoever wrote it.
	if err := errors.Join(f.Truncate(end.size), f.Sync(), j.disk.Sync()); err != nil {
		return err
	}
	if err := f.Reserve(j.o.segmentBytes() + headerSize); err != nil {
		j.spoilt = true // a disk that is full; there may be space when it is needed
	}
	if err := f.Sync(); err != nil {
		return err
	}
	j.last = j.next - 1
	if err := j.knowIDs(); err != nil {
		return err
	}
	first, last := j.Bounds()
	j.o.Log.Info("opened the event stream", "epoch", j.epoch, "first", first, "last", last)
	return nil
}

// knowIDs reads the ids of the latest records.
func (j *Journal) knowIDs() error {
	from, err := j.Since(j.o.now().Add(-idsTime))
	if err != nil {
		return err
	}
	r := j.Reader(from)
	for {
		records, err := r.Next(readMax)
		if err != nil || len(records) == 0 {
			return err
		}
		for _, found := range records {
			j.known.add(idOf(found.ID), found.Sequence)
		}
	}
}
