package snapshotd

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/gantryd/gantry/services/snapshot"
)

// notesDir is where a snapshotter's notes are, beside the trees. It is on the
// file system of the trees, so that what makes a tree durable makes its note.
const notesDir = "notes"

// A note is what a snapshot says of itself, so that its record can be made again.
// The file has a line for each state of the record, and the last that can be
// read counts: what was appended since the last sync of the file system may be
// cut, or zeros, after a power failure.
type note struct {
	owner
	record `json:"record"`
	Origin origin `json:"origin"`
	Whole  bool   `json:"whole,omitempty"` // written after the tree was durable
}

// UnmarshalJSON is not that of the record.
func (n *note) UnmarshalJSON(b []byte) error {
	var plain struct {
		owner
		Record record `json:"record"`
		Origin origin `json:"origin"`
		Whole  bool   `json:"whole"`
	}
	err := json.Unmarshal(b, &plain)
	*n = note{plain.owner, plain.Record, plain.Origin, plain.Whole}
	return err
}

// hasNotes says whether the trees of a snapshotter are below our root. Another
// process keeps its own.
func hasNotes(snapshotter string) bool { return openers[snapshotter] != nil }

func (s *Store) notePath(snapshotter string, id uint64) string {
	return filepath.Join(s.rootOf(snapshotter), notesDir, strconv.FormatUint(id, 10))
}

// tell appends a record to the snapshot's note. Whole says that a committed tree
// is durable: before, the note is only there to become so with it.
func (s *Store) tell(n note) error {
	if !hasNotes(n.Snapshotter) {
		return nil
	}
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	path, line := s.notePath(n.Snapshotter, n.ID), append(append([]byte{'\n'}, b...), '\n')
	if fi, err := os.Lstat(path); err == nil && fi.Size() > noteFull && (n.Kind != snapshot.Committed || n.Whole) {
		return s.disk.Publish(path, func(f *os.File) error {
			_, err := f.Write(line)
			return err
		})
	}
	return s.disk.Append(path, line)
}

// tellLater is tell where the record is what counts.
func (s *Store) tellLater(n note) {
	if err := s.tell(n); err != nil {
		s.log.Warn("a snapshot's note was not written", "snapshotter", n.Snapshotter, "id", n.ID, "err", err)
	}
}

// untell removes the note of a tree that is about to go.
func (s *Store) untell(snapshotter string, id uint64) error {
	if !hasNotes(snapshotter) {
		return nil
	}
	return s.disk.RemoveFile(s.notePath(snapshotter, id))
}

func (h shelf) owner(name string) owner { return owner{h.snapshotter, h.namespace, name} }

// make says that a tree gets a record soon, until made is called.
func (s *Store) make(id uint64) (made func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making[id] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.making, id)
	}
}

// isMaking says whether a tree gets a record soon, or somebody works on it.
func (s *Store) isMaking(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.making[id] || s.held[id] != nil
}

const (
	// noteMax is how long a note is at most that is read.
	noteMax = 1 << 20

	// noteFull is how long it becomes before a state that can be believed alone
	// takes the place of all: its labels may change as often as somebody likes.
	noteFull = 64 << 10
)

// readNote returns what can be read of a note, the last state first.
func readNote(path string, id uint64) ([]note, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > noteMax {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []note
	lines := bytes.Split(b, []byte{'\n'})
	for _, line := range slices.Backward(lines) {
		var n note
		if json.Unmarshal(line, &n) == nil && n.ID == id && n.Name != "" && n.Kind != "" {
			all = append(all, n)
		}
	}
	return all, nil
}

// noteIDs returns the ids of a snapshotter's notes.
func (s *Store) noteIDs(snapshotter string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Join(s.rootOf(snapshotter), notesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, e := range entries {
		if id, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// mendNotes makes the notes that are missing, and has those of active snapshots
// say what their records say, after a commit that was interrupted.
func (s *Store) mendNotes(all []kept) error {
	has := make(map[string]map[uint64]bool)
	for name := range s.drivers {
		ids, err := s.noteIDs(name)
		if err != nil {
			return err
		}
		has[name] = make(map[uint64]bool, len(ids))
		for _, id := range ids {
			has[name][id] = true
		}
	}
	var last time.Time
	for _, k := range all {
		if k.record.Updated.After(last) {
			last = k.record.Updated
		}
	}
	for _, k := range all {
		notes, loaded := has[k.owner.Snapshotter]
		if !loaded || notes[k.record.ID] && s.isTold(k, last.Add(-noteDelay)) {
			continue
		}
		s.tellLater(note{k.owner, k.record, k.origin, true})
	}
	return nil
}

// noteDelay is long enough for what was appended to a note to have come to the
// disk by itself. What was appended in that time before the last change of all may
// be lost by a power failure that came then.
const noteDelay = time.Hour

// isTold says whether the note of a tree is about what the record is about. What
// is committed stays so: after a while nobody has to look again.
func (s *Store) isTold(k kept, since time.Time) bool {
	if k.record.Kind == snapshot.Committed && k.record.Updated.Before(since) {
		return true
	}
	told, err := readNote(s.notePath(k.owner.Snapshotter, k.record.ID), k.record.ID)
	if err != nil || len(told) == 0 {
		return false
	}
	n, ok := believed(told, k.owner.Snapshotter)
	return ok && n.Kind == k.record.Kind && (n.Kind == snapshot.Committed || told[0].Kind == n.Kind)
}
