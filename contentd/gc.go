package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

var _ gc.Owner = (*Store)(nil)

// Begin implements [gc.Owner].
func (s *Store) Begin(ctx context.Context, epoch gc.Epoch) error { return s.gate.Begin(ctx, epoch) }

// Mark implements [gc.Owner]. At its end the database has to prove that it lacks
// no row: of a table that is damaged while it is used it says that its rows are
// not there, and so would what they refer to seem to be garbage.
func (s *Store) Mark(ctx context.Context, epoch gc.Epoch) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		for _, rows := range []string{"blob", "ingest"} {
			for from, more := []byte(nil), true; more; more = from != nil {
				batch, next, err := s.markBatch(rows, from)
				if !s.yieldAll(ctx, epoch, batch, err, yield) {
					return
				}
				from = next
			}
		}
		if err := s.kv.Verify(ctx); err != nil {
			yield(gc.Object{}, err)
		}
	}
}

// markBatch reads the next listBatch objects, and the key to go on from.
func (s *Store) markBatch(rows string, from []byte) (batch []gc.Object, next []byte, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key(rows, ""), from) {
			if len(batch) == listBatch {
				next = key
				break
			}
			n, _ := nodeAt(key)
			o, err := s.object(n, key, value)
			if err != nil {
				return err
			}
			batch = append(batch, o)
		}
		return s.readLeases(tx, batch)
	})
	return batch, next, err
}

// yieldAll says whether there is a reason to go on.
func (s *Store) yieldAll(ctx context.Context, epoch gc.Epoch, batch []gc.Object, err error, yield func(gc.Object, error) bool) bool {
	if err == nil {
		err = errors.Join(ctx.Err(), s.gate.Check(epoch))
	}
	if err != nil {
		yield(gc.Object{}, err)
		return false
	}
	for _, o := range batch {
		if o.Type == lease.TypeIngests {
			o.Size = s.ingestSize(o)
		}
		if !yield(o, nil) {
			return false
		}
	}
	return true
}

// object reads what a record says. A blob that lost its bytes refers all the
// same. An ingest that is damaged waits for its Abort.
func (s *Store) object(n gc.Node, key, value []byte) (gc.Object, error) {
	o := gc.Object{Node: n}
	if n.Type == lease.TypeContent {
		b, err := readBlob(key, value)
		o.Size = b.Size
		o.Read(b.Labels)
		return o, err
	}
	rec, err := readIngest(key, value)
	o.Root = err != nil || s.now().Before(rec.Expires)
	if rec.Expected != "" {
		o.Refs = []lease.Resource{contentOf(rec.Expected)}
	}
	return o, nil
}

// readLeases reads the leases of objects that are of one type and in the order
// of their keys, and decides which ingests are roots: those that somebody
// writes, and those whose time is not over and that no lease decides about.
func (s *Store) readLeases(tx *kv.Tx, objects []gc.Object) error {
	for rest := objects; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Namespace == rest[0].Namespace {
			n++
		}
		if err := addLeases(tx, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	for i := range objects {
		if o := &objects[i]; o.Type == lease.TypeIngests {
			c := &scoped{s, namespace.Scope{Name: o.Namespace}}
			o.Root = o.Root && len(o.Leases) == 0 || c.writerOf(o.ID) != nil
		}
	}
	return nil
}

// addLeases is of objects of one type and namespace: one scan for all.
func addLeases(tx *kv.Tx, run []gc.Object) error {
	at := make(map[string]*gc.Object, len(run))
	for i := range run {
		at[run[i].ID] = &run[i]
	}
	first, last := run[0], run[len(run)-1]
	rows := func(id string) []byte { return kv.Key("member", first.Namespace, first.Type, id) }
	past := append(rows(last.ID), 1) // whose parts are separated by 0
	for key := range tx.Scan(rows(""), rows(first.ID)) {
		if bytes.Compare(key, past) >= 0 {
			break
		}
		m, err := memberAt(key)
		if err != nil {
			return err
		}
		if o := at[m.of.ID]; o != nil {
			o.Leases = append(o.Leases, m.lease)
		}
	}
	return nil
}

// ingestSize is how many bytes an ingest has, if that can be told.
func (s *Store) ingestSize(o gc.Object) int64 {
	c := &scoped{s, namespace.Scope{Name: o.Namespace}}
	st, err := c.Status(context.Background(), o.ID)
	if err != nil {
		return 0
	}
	return st.Offset
}

// Freeze implements [gc.Owner].
func (s *Store) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) iter.Seq2[gc.Object, error] {
	return func(yield func(gc.Object, error) bool) {
		noted, err := s.db.Freeze(ctx, epoch, deadline)
		for len(noted) > 0 || err != nil {
			n := min(len(noted), listBatch)
			var batch []gc.Object
			if err == nil {
				batch, err = s.read(noted[:n])
			}
			if !s.yieldAll(ctx, epoch, batch, err, yield) {
				return
			}
			noted = noted[n:]
		}
	}
}

// read returns those of the nodes that are there.
func (s *Store) read(nodes []gc.Node) (batch []gc.Object, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		for _, n := range nodes {
			o, err := s.readOne(tx, n)
			if errors.Is(err, errdefs.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			batch = append(batch, o)
		}
		return nil
	})
	return batch, err
}

func (s *Store) readOne(tx *kv.Tx, n gc.Node) (gc.Object, error) {
	key := blobKey(n.Namespace, digest.Digest(n.ID))
	if n.Type == lease.TypeIngests {
		key = ingestKey(n.Namespace, n.ID)
	}
	value, err := tx.Get(key)
	if err != nil {
		return gc.Object{}, err
	}
	o, err := s.object(n, key, value)
	if err != nil {
		return gc.Object{}, err
	}
	one := []gc.Object{o}
	err = s.readLeases(tx, one)
	return one[0], err
}

// Sweep implements [gc.Owner]. The bytes are trash then, and Collect removes
// them.
func (s *Store) Sweep(ctx context.Context, epoch gc.Epoch, dead []gc.Node) (int, error) {
	for _, n := range dead {
		if err := n.Check(); err != nil {
			return 0, err
		}
		if n.Type != lease.TypeContent && n.Type != lease.TypeIngests {
			return 0, fmt.Errorf("node %q is not kept here: %w", n, errdefs.ErrInvalidArgument)
		}
	}
	n, err := s.gate.Sweep(ctx, epoch, dead, s.sweepDead)
	if n > 0 {
		s.log.Info("removed what nobody refers to", "count", n, "epoch", epoch)
	}
	return n, err
}

// End implements [gc.Owner].
func (s *Store) End(ctx context.Context, epoch gc.Epoch) error { return s.gate.End(ctx, epoch) }

// sweepRoom is how many bytes the rows that one transaction removes are long at
// most: a commit takes a little more than twice as much.
const sweepRoom = 128 << 10

// sweepDead removes as many of the dead as one transaction takes. They come in
// an order in which every prefix is safe, so that a crash between two
// transactions is.
func (s *Store) sweepDead(ctx context.Context, dead []gc.Node) (done, removed int, err error) {
	var left []leftover
	err = s.db.Release(ctx, func(tx *kv.Tx) error {
		done, removed, left = 0, 0, nil
		for room := sweepRoom; done < len(dead); done++ {
			n := dead[done]
			o, err := s.readOne(tx, n)
			if errors.Is(err, errdefs.ErrNotFound) || err == nil && o.Root {
				continue
			}
			if err != nil {
				return err
			}
			all, err := dropRows(tx, o, &room)
			if err != nil || !all {
				return err
			}
			rest, err := s.dropObject(tx, o)
			if err != nil {
				return err
			}
			left = append(left, rest)
			removed++
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	s.leave(left)
	return done, removed, nil
}

// dropRows takes a dead object from its leases, and says whether there was room
// for that and for what is left of it.
func dropRows(tx *kv.Tx, o gc.Object, room *int) (all bool, err error) {
	const beside = 100 // a row is longer than its key
	for _, l := range o.Leases {
		m := membership{ns: o.Namespace, lease: l, of: o.Resource}
		keys := m.keys()
		if *room -= len(keys[0]) + len(keys[1]) + 2*beside; *room < 0 {
			return false, nil
		}
		if err := m.remove(tx); err != nil {
			return false, err
		}
	}
	*room -= 3 * (len(o.Namespace) + len(o.ID) + beside)
	return *room >= 0, nil
}

// A leftover is what a dead object leaves on the disk: the note of a blob's file
// that says whose it is, and the file of an ingest.
type leftover struct {
	namespace string
	digest    digest.Digest // of a blob
	file      string        // of an ingest
}

// dropObject removes the record of a dead object. Nobody is told: see
// [gc.Owner].
func (s *Store) dropObject(tx *kv.Tx, o gc.Object) (leftover, error) {
	left := leftover{namespace: o.Namespace}
	if o.Type == lease.TypeIngests {
		file, _, err := (&scoped{s, namespace.Scope{Name: o.Namespace}}).forget(tx, o.ID)
		left.file = file
		return left, err
	}
	d := digest.Digest(o.ID)
	left.digest = d
	return left, errors.Join(
		tx.Delete(blobKey(o.Namespace, d)),
		tx.Delete(haveKey(d, o.Namespace)),
		s.trash(tx, d, o.Size),
	)
}

// leave leaves the rest to Collect, and what a crash leaves of files of ingests
// to the next Open: it wants locks of digests, and who has one may wait for
// writers to be let in.
func (s *Store) leave(left []leftover) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left = append(s.left, left...); len(left) > 0 {
		s.ring()
	}
}

// sweepLeft removes what Sweep left.
func (s *Store) sweepLeft() error {
	s.mu.Lock()
	left := s.left
	s.left = nil
	s.mu.Unlock()
	var failed error
	var still []leftover
	for _, l := range left {
		if l.file == "" {
			s.unannotate(l.digest, l.namespace)
		} else if err := s.disk.Remove(s.ingestPath(l.file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
			still = append(still, l)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, still...)
	return failed
}
