package driver

import (
	"sync"

	"golang.org/x/sys/unix"
)

// TogetherOn returns a Disk on d whose callers of SyncFS share: those who come
// while the file system is being synced wait for the next sync, which is one for
// all of them. The one under way is not theirs: what they wrote may be behind
// what it has written already.
func TogetherOn(d Disk) Disk {
	return &together{Disk: d, syncs: make(map[uint64]*syncs)}
}

type together struct {
	Disk

	// mu guards syncs, by file system, and how many calls use each. It is
	// never held with that of syncs.
	mu    sync.Mutex
	syncs map[uint64]*syncs
}

// Syncs are those of one file system.
type syncs struct {
	users int
	turn  chan struct{} // of one: has an item while a sync is under way

	// mu guards next, which whoever comes joins. It is a leaf.
	mu   sync.Mutex
	next *round
}

// A round is a sync that has not begun, or one that is over when done is closed.
type round struct {
	done chan struct{}
	err  error
}

// SyncFS implements Disk.
func (t *together) SyncFS(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return t.Disk.SyncFS(path) // which says what is wrong
	}
	s := t.take(st.Dev)
	defer t.giveBack(st.Dev, s)
	return s.sync(func() error { return t.Disk.SyncFS(path) })
}

func (t *together) take(dev uint64) *syncs {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.syncs[dev]
	if !ok {
		s = &syncs{turn: make(chan struct{}, 1)}
		t.syncs[dev] = s
	}
	s.users++
	return s
}

func (t *together) giveBack(dev uint64, s *syncs) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(t.syncs, dev)
	}
}

// sync calls do, or returns what somebody else's do returned that was called
// after sync was.
func (s *syncs) sync(do func() error) error {
	r := s.join()
	select {
	case <-r.done:
		return r.err
	case s.turn <- struct{}{}:
	}
	defer func() { <-s.turn }()
	select {
	case <-r.done: // before this one had the turn
		return r.err
	default:
	}
	// Who comes from here on may have written what do does not find.
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	defer close(r.done)
	r.err = do()
	return r.err
}

func (s *syncs) join() *round {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = &round{done: make(chan struct{})}
	}
	return s.next
}
