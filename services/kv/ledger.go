package kv

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/dgraph-io/badger/v4"
)

// A ledger is what the database proves itself by: a row, rewritten with every
// commit, of how many rows there are and what they hash to in sum. Badger
// checks what it reads, but goes on without a table, a log or the end of a log
// that is not there any more, and takes a block that it cannot read for one that
// has no rows.
type ledger struct {
	commits uint64    // so far
	rows    uint64    // but for this one
	sum     [2]uint64 // of the hashes of the rows, in any order
}

// ledgerKey is, as ownerKey is, out of the reach of callers.
var ledgerKey = append([]byte(nil), "\x01owner.ledger"...)

func (l *ledger) add(key, value []byte) {
	h := hashRow(key, value)
	l.rows++
	l.sum[0] += h[0]
	l.sum[1] += h[1]
}

func (l *ledger) remove(key, value []byte) {
	h := hashRow(key, value)
	l.rows--
	l.sum[0] -= h[0]
	l.sum[1] -= h[1]
}

func hashRow(key, value []byte) [2]uint64 {
	b := make([]byte, 0, 4+len(key)+len(value))
	b = binary.BigEndian.AppendUint32(b, uint32(len(key)))
	b = append(append(b, key...), value...)
	sum := sha256.Sum256(b)
	return [2]uint64{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])}
}

func (l ledger) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, l.commits)
	b = binary.BigEndian.AppendUint64(b, l.rows)
	b = binary.BigEndian.AppendUint64(b, l.sum[0])
	return binary.BigEndian.AppendUint64(b, l.sum[1])
}

func decodeLedger(b []byte) (ledger, error) {
	if len(b) != 32 {
		return ledger{}, fmt.Errorf("the ledger has %d bytes: %w", len(b), errdefs.ErrDataLoss)
	}
	at := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	return ledger{commits: at(0), rows: at(1), sum: [2]uint64{at(2), at(3)}}, nil
}

// getLedger returns an empty one if there is none.
func getLedger(txn *badger.Txn) (l ledger, ok bool, err error) {
	item, err := txn.Get(ledgerKey)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return l, false, nil
	}
	if err == nil {
		err = item.Value(func(b []byte) (err error) {
			l, err = decodeLedger(b)
			return err
		})
	}
	return l, err == nil, err
}

// account brings the ledger up to date with the writes of a transaction before
// they are made. A row that cannot be read any more stays in the sum, which then
// proves that it is lost.
func (l *ledger) account(txn *badger.Txn, writes map[string]write) {
	for k, w := range writes {
		key := []byte(k)
		if item, err := txn.Get(key); err == nil {
			_ = item.Value(func(old []byte) error {
				l.remove(key, old)
				return nil
			})
		}
		if !w.deleted {
			l.add(key, w.value)
		}
	}
	l.commits++
}

// Commits says how many commits there were. Two that are equal say that nothing
// has changed between them.
func (db *DB) Commits() (uint64, error) {
	if err := db.enter(); err != nil {
		return 0, err
	}
	defer db.leave()
	snap := db.badger.NewTransaction(false)
	defer snap.Discard()
	l, _, err := getLedger(snap)
	return l.commits, err
}

// Verify reads every row and compares them with what was written:
// [errdefs.ErrDataLoss] if any is missing, damaged or one of before.
func (db *DB) Verify(ctx context.Context) error {
	if err := db.enter(); err != nil {
		return err
	}
	defer db.leave()
	snap := db.badger.NewTransaction(false)
	defer snap.Discard()
	want, _, err := getLedger(snap)
	if err != nil {
		return dataLoss(err)
	}
	return want.check(ctx, snap)
}

// check compares the ledger with the rows.
func (l ledger) check(ctx context.Context, snap *badger.Txn) error {
	got := ledger{commits: l.commits}
	if err := eachRow(ctx, snap, func(key, value []byte) error {
		got.add(key, value)
		return nil
	}); err != nil {
		return err
	}
	if got != l {
		return fmt.Errorf("%d rows were written and %d are there, or others: %w", l.rows, got.rows, errdefs.ErrDataLoss)
	}
	return nil
}

// eachRow calls fn for every row but the ledger, in order.
func eachRow(ctx context.Context, snap *badger.Txn, fn func(key, value []byte) error) error {
	it := snap.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		if string(item.Key()) == string(ledgerKey) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		failed := error(nil)
		if err := item.Value(func(value []byte) error {
			failed = fn(item.Key(), value)
			return nil
		}); err != nil {
			return dataLoss(fmt.Errorf("key %q: %w", item.Key(), err))
		}
		if failed != nil {
			return failed
		}
	}
	return nil
}

func dataLoss(err error) error {
	if err == nil || errdefs.IsDataLoss(err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
}

// A witness is a file that says how many commits there were. It is written after
// each, and not synced: a kill leaves it exact, and a loss of power at worst
// behind. A database that knows fewer has lost the last.
type witness struct{ f *os.File }

const witnessName = "witness"

// openWitness returns the commits that the file knows of; none, if it is not
// whole: then the rest of the database is.
func openWitness(dir string) (witness, uint64, error) {
	f, err := os.OpenFile(filepath.Join(dir, witnessName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return witness{}, 0, err
	}
	var b [12]byte
	n, _ := f.ReadAt(b[:], 0)
	if n != len(b) || crc32.ChecksumIEEE(b[:8]) != binary.BigEndian.Uint32(b[8:]) {
		return witness{f}, 0, nil
	}
	return witness{f}, binary.BigEndian.Uint64(b[:]), nil
}

func (w witness) set(commits uint64) error {
	b := binary.BigEndian.AppendUint64(nil, commits)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	_, err := w.f.WriteAt(b, 0)
	return err
}

// prove compares the ledger with the rows and with the witness when the
// database is opened.
func (db *DB) prove(ctx context.Context, seen uint64, behind bool) error {
	snap := db.badger.NewTransaction(false)
	defer snap.Discard()
	l, ok, err := getLedger(snap)
	if err != nil {
		return dataLoss(err)
	}
	if !ok && seen == 0 {
		return nil // one that is being made, or of before there were ledgers
	}
	if l.commits < seen && !behind {
		return fmt.Errorf("of %d commits the last %d are not there: %w", seen, seen-l.commits, errdefs.ErrDataLoss)
	}
	if err := l.check(ctx, snap); err != nil || l.commits >= seen {
		return err
	}
	return db.witness.set(l.commits)
}

// startLedger writes the ledger of a database that has none.
func (db *DB) startLedger(ctx context.Context) error {
	snap := db.badger.NewTransaction(false)
	defer snap.Discard()
	l, ok, err := getLedger(snap)
	if err != nil || ok {
		return dataLoss(err)
	}
	if err := eachRow(ctx, snap, func(key, value []byte) error {
		l.add(key, value)
		return nil
	}); err != nil {
		return err
	}
	return db.badger.Update(func(txn *badger.Txn) error { return txn.Set(ledgerKey, l.encode()) })
}
