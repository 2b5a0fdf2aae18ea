package contentd

import "sync"

// A names makes what was named in one directory durable. Whoever asks while a
// sync is under way shares the next one, which begins after all of them asked:
// a sync is of the directory, and not of a name.
type names struct {
	disk disk
	dir  string

	// turn is held by whoever syncs.
	turn chan struct{}

	// mu guards next.
	mu   sync.Mutex
	next *round // the sync that has not begun
}

// A round is one sync. Its error is final when done is closed.
type round struct {
	done chan struct{}
	err  error
}

func newNames(d disk, dir string) *names {
	return &names{disk: d, dir: dir, turn: make(chan struct{}, 1)}
}

// sync returns when every name that was given before it was called is durable.
func (n *names) sync() error {
	n.mu.Lock()
	if n.next == nil {
		n.next = &round{done: make(chan struct{})}
	}
	r := n.next
	n.mu.Unlock()
	for {
		select {
		case <-r.done:
			return r.err
		case n.turn <- struct{}{}:
			n.lead(r)
		}
	}
}

// lead syncs, unless r was done before it got the turn.
func (n *names) lead(r *round) {
	defer func() { <-n.turn }()
	n.mu.Lock()
	mine := n.next == r
	if mine {
		n.next = nil
	}
	n.mu.Unlock()
	if mine {
		r.err = n.disk.SyncDir(n.dir)
		close(r.done)
	}
}
