package kv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// groupMax is how many updates share a commit at most: enough that the sync is
// cheap for each, few enough that the first does not wait long for the last.
const groupMax = 256

// An update is a caller's function on its way to the disk.
type update struct {
	fn      func(*Tx) error
	release bool
	err     error
	done    chan struct{} // closed when err is final
}

// errUnfinished is what the rest of a group gets when one of its functions ends
// the goroutine that runs them.
var errUnfinished = errors.New("update was not finished")

// Update runs fn and makes what it wrote durable before it returns nil. The
// updates of concurrent callers share one commit; each sees those before it.
// When fn fails nothing of it is written and its error is returned unchanged.
// A ctx that ends before fn runs is its error; later it changes nothing. fn runs
// on any caller's goroutine, does no I/O, calls nobody and may not keep tx. A
// disk that is nearly full is [errdefs.ErrResourceExhausted]; a transaction too
// large for one commit is [errdefs.ErrInvalidArgument].
func (db *DB) Update(ctx context.Context, fn func(tx *Tx) error) error {
	return db.update(ctx, &update{fn: fn})
}

// Release is Update for what frees space; it goes on when the disk is nearly
// full.
func (db *DB) Release(ctx context.Context, fn func(tx *Tx) error) error {
	return db.update(ctx, &update{fn: fn, release: true})
}

func (db *DB) update(ctx context.Context, u *update) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.enter(); err != nil {
		return err
	}
	defer db.leave()
	u.err = errUnfinished
	u.done = make(chan struct{})
	db.mu.Lock()
	db.waiting = append(db.waiting, u)
	db.mu.Unlock()

	for {
		select {
		case <-u.done:
			return u.err
		case db.turn <- struct{}{}:
			db.lead(u)
		case <-ctx.Done():
			if db.withdraw(u) {
				return ctx.Err()
			}
			// It is being run and may already be true.
			<-u.done
			return u.err
		}
	}
}

// withdraw takes u out of the queue, if it is still there.
func (db *DB) withdraw(u *update) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	i := slices.Index(db.waiting, u)
	if i < 0 {
		return false
	}
	db.waiting = slices.Delete(db.waiting, i, i+1)
	return true
}

// lead runs the next group, unless u was in one before it got the turn.
func (db *DB) lead(u *update) {
	defer func() { <-db.turn }()
	select {
	case <-u.done:
		return
	default:
	}
	db.mu.Lock()
	n := min(len(db.waiting), groupMax)
	group := slices.Clone(db.waiting[:n])
	db.waiting = slices.Delete(db.waiting, 0, n)
	db.mu.Unlock()
	defer func() {
		for _, u := range group {
			close(u.done)
		}
	}()
	db.runGroup(group)
}

// runGroup runs the functions of a group in order and commits what they wrote:
// at once, or in parts where it is more than one transaction holds.
func (db *DB) runGroup(group []*update) {
	p := part{db: db}
	defer p.discard()
	room := db.space.lookAhead(slices.ContainsFunc(group, func(u *update) bool { return u.release }))
	p.room = room
	for i, u := range group {
		if u.err = room.refuse(u.release); u.err != nil {
			continue
		}
		p.begin()
		tx := &Tx{snap: p.snap, below: p.writes, own: make(map[string]write)}
		if u.err = tx.run(u.fn); u.err != nil {
			continue
		}
		size := sizeOf(tx.own)
		if u.err = size.check(db.limit()); u.err != nil {
			continue
		}
		if !p.size.add(size).within(db.limit()) {
			if err := p.commit(); err != nil {
				fail(group, i, err)
				return
			}
			p.begin()
		}
		p.take(tx, size)
	}
	if err := p.commit(); err != nil {
		fail(group, len(group), err)
	}
}

// fail gives a commit's error to every update whose fate hangs on it. Those
// whose own function failed get it too: what they saw may not have become true.
func fail(group []*update, upTo int, err error) {
	for i, u := range group {
		if i >= upTo || u.err == nil {
			u.err = err
		}
	}
}

// A part of a group is what is committed as one transaction.
type part struct {
	db     *DB
	room   room
	snap   *badger.Txn // what the functions read below their own writes
	writes map[string]write
	size   size
	after  []func()
}

func (p *part) begin() {
	if p.snap == nil {
		p.snap = p.db.badger.NewTransaction(false)
		p.writes = make(map[string]write)
	}
}

func (p *part) take(tx *Tx, s size) {
	maps.Copy(p.writes, tx.own)
	p.size = p.size.add(s)
	p.after = append(p.after, tx.after...)
}

func (p *part) commit() error {
	defer p.discard()
	if err := p.write(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	for _, fn := range p.after {
		fn()
	}
	return nil
}

func (p *part) write() error {
	if len(p.writes) == 0 {
		return nil
	}
	p.db.cache.begin(p.writes)
	defer p.db.cache.end()
	if p.room.reserved && !p.db.space.wal.takes(p.writes, p.size) {
		p.room.release = false
		return p.room.refuse(true)
	}
	txn := p.db.badger.NewTransaction(true)
	defer txn.Discard()
	l, _, err := getLedger(txn)
	if err != nil {
		return dataLoss(err)
	}
	l.account(txn, p.writes)
	if err := txn.Set(ledgerKey, l.encode()); err != nil {
		return err
	}
	for k, w := range p.writes {
		var err error
		if w.deleted {
			err = txn.Delete([]byte(k))
		} else {
			err = txn.Set([]byte(k), w.value)
		}
		if err != nil {
			return err
		}
	}
	if err := txn.Commit(); err != nil {
		return err
	}
	p.db.space.wal.wrote(p.size)
	if err := p.db.witness.set(l.commits); err != nil {
		p.db.space.log.Debug("the witness is behind", "err", err)
	}
	return nil
}

func (p *part) discard() {
	if p.snap != nil {
		p.snap.Discard()
	}
	p.snap, p.writes, p.size, p.after = nil, nil, size{}, nil
}
