package kv

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/dgraph-io/badger/v4"
)

// A backup is backupMagic; the rows, each as the length of the key, the key, the
// length of the value and the value; a zero; the number of rows; and the SHA-256
// of all that. Lengths are uvarints. The ledger is the first row.
const backupMagic = "gantry records 1\n"

// Backup writes a backup that Restore reads, of one moment. It holds up nobody,
// and is [errdefs.ErrDataLoss] if rows are missing: such a backup is not whole.
func (db *DB) Backup(ctx context.Context, w io.Writer) error {
	if err := db.enter(); err != nil {
		return err
	}
	defer db.leave()
	if err := db.backup(ctx, w); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

func (db *DB) backup(ctx context.Context, to io.Writer) error {
	snap := db.badger.NewTransaction(false)
	defer snap.Discard()
	l, _, err := getLedger(snap)
	if err != nil {
		return dataLoss(err)
	}
	w := newBackupWriter(to)
	got := ledger{commits: l.commits}
	if err := w.row(ledgerKey, l.encode()); err != nil {
		return err
	}
	if err := eachRow(ctx, snap, func(key, value []byte) error {
		if db.isClosing() {
			return fmt.Errorf("database is closed: %w", errdefs.ErrUnavailable)
		}
		got.add(key, value)
		return w.row(key, value)
	}); err != nil {
		return err
	}
	if got != l {
		return fmt.Errorf("%d rows were written and %d are there, or others: %w", l.rows, got.rows, errdefs.ErrDataLoss)
	}
	return w.end()
}

type backupWriter struct {
	w    *bufio.Writer
	hash hash.Hash
	rows uint64
}

func newBackupWriter(to io.Writer) *backupWriter {
	h := sha256.New()
	w := &backupWriter{w: bufio.NewWriterSize(io.MultiWriter(to, h), 64<<10), hash: h}
	_, _ = w.w.WriteString(backupMagic) // an error stays, for Flush
	return w
}

func (w *backupWriter) row(key, value []byte) error {
	w.rows++
	for _, part := range [][]byte{key, value} {
		_, _ = w.w.Write(binary.AppendUvarint(nil, uint64(len(part))))
		if _, err := w.w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func (w *backupWriter) end() error {
	_, _ = w.w.Write(binary.AppendUvarint([]byte{0}, w.rows))
	if err := w.w.Flush(); err != nil {
		return err
	}
	_, _ = w.w.Write(w.hash.Sum(nil))
	return w.w.Flush()
}

// A BackupInfo is what a backup says of itself.
type BackupInfo struct {
	Rows    int64
	Commits uint64 // how many there had been
}

// CheckBackup reads a backup to its end: [errdefs.ErrDataLoss] if it is not
// whole, and [errdefs.ErrFailedPrecondition] if it is another daemon's or a
// newer one's.
func CheckBackup(o Options, r io.Reader) (BackupInfo, error) {
	l, _, err := readBackup(r, o, func([]byte, []byte) error { return nil })
	return BackupInfo{Rows: int64(l.rows), Commits: l.commits}, err
}

// readBackup calls fn for every row but the ledger and the owner's; what it says
// is not known to be whole before readBackup returns the ledger and the owner's
// row.
func readBackup(from io.Reader, o Options, fn func(key, value []byte) error) (want ledger, whose []byte, err error) {
	r := &backupReader{r: bufio.NewReaderSize(from, 64<<10), hash: sha256.New()}
	if err := r.magic(); err != nil {
		return want, whose, err
	}
	var got ledger
	for rows := uint64(0); ; rows++ {
		key, err := r.part(keyMax + 1)
		if err != nil {
			return want, whose, err
		}
		if len(key) == 0 {
			return want, whose, r.end(rows, want, got, whose, o)
		}
		value, err := r.part(valueMax)
		if err != nil {
			return want, whose, err
		}
		switch {
		case string(key) == string(ledgerKey):
			if want, err = decodeLedger(value); err != nil {
				return want, whose, err
			}
			got.commits = want.commits
			continue
		case string(key) == string(ownerKey):
			whose = value
		default:
			if err := fn(key, value); err != nil {
				return want, whose, err
			}
		}
		got.add(key, value)
	}
}

type backupReader struct {
	r    *bufio.Reader
	hash hash.Hash
}

// cut makes the end of a stream one that came too early. Other errors of the
// reader are its own.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the backup ends early: %w", errdefs.ErrDataLoss)
	}
	return err
}

func (r *backupReader) magic() error {
	b := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(r.r, b); err != nil {
		return cut(err)
	}
	if string(b) != backupMagic {
		return fmt.Errorf("this is no backup: %w", errdefs.ErrDataLoss)
	}
	r.hash.Write(b)
	return nil
}

// ReadByte is for lengths.
func (r *backupReader) ReadByte() (byte, error) {
	b, err := r.r.ReadByte()
	if err == nil {
		r.hash.Write([]byte{b})
	}
	return b, err
}

func (r *backupReader) number() (uint64, error) {
	n, err := binary.ReadUvarint(r)
	if err = cut(err); err != nil && !errors.Is(err, errdefs.ErrDataLoss) {
		err = fmt.Errorf("the backup has a bad length: %v: %w", err, errdefs.ErrDataLoss)
	}
	return n, err
}

func (r *backupReader) part(most uint64) ([]byte, error) {
	n, err := r.number()
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("the backup has a row of %d bytes: %w", n, errdefs.ErrDataLoss)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		return nil, cut(err)
	}
	r.hash.Write(b)
	return b, nil
}

func (r *backupReader) end(rows uint64, want, got ledger, whose []byte, o Options) error {
	n, err := r.number()
	if err != nil {
		return err
	}
	sum := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r.r, sum); err != nil {
		return cut(err)
	}
	if n != rows || string(sum) != string(r.hash.Sum(nil)) || want != got {
		return fmt.Errorf("the backup is damaged: %w", errdefs.ErrDataLoss)
	}
	if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the backup goes on after its end: %v: %w", err, errdefs.ErrDataLoss)
	}
	var is owner
	if err := json.Unmarshal(whose, &is); err != nil {
		return fmt.Errorf("the backup does not say whose it is: %w: %w", err, errdefs.ErrDataLoss)
	}
	if is.Daemon != o.Owner {
		return fmt.Errorf("the backup is %q's, not %s's: %w", is.Daemon, o.Owner, errdefs.ErrFailedPrecondition)
	}
	if is.Schema > o.Schema {
		return fmt.Errorf("the backup has schema %d, newer than %d of this %s: %w", is.Schema, o.Schema, o.Owner, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Restore makes a database from a backup, in a directory that is missing or
// empty. It is a new incarnation of the database. What is there if it fails is
// no database, and can be removed.
func Restore(ctx context.Context, o Options, r io.Reader) (BackupInfo, error) {
	db, _, err := open(&o)
	if err != nil {
		return BackupInfo{}, err
	}
	info, err := db.restore(ctx, o, r)
	if err != nil {
		return info, errors.Join(fmt.Errorf("restore to %s: %w", o.Dir, err), db.Close())
	}
	return info, db.Close()
}

func (db *DB) restore(ctx context.Context, o Options, r io.Reader) (BackupInfo, error) {
	if err := db.View(func(tx *Tx) error {
		return errors.Join(wantEmpty(tx), wantAbsent(tx.getOwner(&db.owner)))
	}); err != nil {
		return BackupInfo{}, err
	}
	batch := db.badger.NewWriteBatch()
	defer batch.Cancel()
	full := int64(0)
	l, whose, err := readBackup(r, o, func(key, value []byte) error {
		if full += int64(len(key) + len(value)); full > roomEvery {
			if err := db.space.look(false).refuse(false); err != nil {
				return err
			}
			full = 0
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return batch.SetEntry(badger.NewEntry(key, value))
	})
	if err == nil {
		err = batch.Flush()
	}
	if err != nil {
		return BackupInfo{}, err
	}
	// Without these two rows it is no database.
	info := BackupInfo{Rows: int64(l.rows), Commits: l.commits}
	if err := json.Unmarshal(whose, &db.owner); err != nil {
		return info, err
	}
	l.remove(ownerKey, whose)
	db.owner.Incarnation = newIncarnation()
	after, err := json.Marshal(db.owner)
	if err != nil {
		return info, err
	}
	l.add(ownerKey, after)
	l.commits++
	if err := db.badger.Update(func(txn *badger.Txn) error {
		return errors.Join(txn.Set(ownerKey, after), txn.Set(ledgerKey, l.encode()))
	}); err != nil {
		return info, err
	}
	if err := db.witness.set(l.commits); err != nil {
		return info, err
	}
	return info, db.Verify(ctx)
}

// roomEvery is how many bytes are restored between two looks at the disk.
const roomEvery = 4 << 20
