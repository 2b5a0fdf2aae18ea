package contentd

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// told is what the clients know. What they do not know may be either.
type told struct {
	there   map[where]bool             // blobs that are, and that are not
	labels  map[where]string           // label "a" of a blob that is
	ingests map[string]*left           // by ref; nil is gone
	refs    map[string]namespace.Scope // in which a ref is
	members map[lease.Resource]bool    // of the lease
	rotten  map[digest.Digest]bool     // bytes that are wrong: true until somebody has noticed
}

type where struct {
	scope  namespace.Scope
	digest digest.Digest
}

// left is an ingest that was closed.
type left struct {
	size   int64
	digest digest.Digest
}

func newTold() *told {
	return &told{
		there: map[where]bool{}, labels: map[where]string{}, ingests: map[string]*left{},
		refs: map[string]namespace.Scope{}, members: map[lease.Resource]bool{}, rotten: map[digest.Digest]bool{},
	}
}

func (t *told) is(scope namespace.Scope, d digest.Digest, there bool) {
	t.there[where{scope, d}] = there
}

// doubt is said before the client does something.
func (t *told) doubt(scope namespace.Scope, d digest.Digest) {
	delete(t.there, where{scope, d})
	delete(t.labels, where{scope, d})
	if _, ok := t.rotten[d]; ok {
		// Whoever brings the bytes brings them for all that had them.
		delete(t.there, where{one, d})
		delete(t.there, where{two, d})
	}
}

// doubtRef is doubt of an ingest.
func (t *told) doubtRef(ref string) {
	delete(t.ingests, ref)
	delete(t.members, ingestOf(ref))
}

// over is said when an ingest is, which is in no lease then.
func (t *told) over(ref string) {
	t.ingests[ref] = nil
	t.members[ingestOf(ref)] = false
}

func (t *told) put(ctx context.Context, s *Store, scope namespace.Scope, ref string, b []byte) error {
	d := digest.FromBytes(b)
	t.doubt(scope, d)
	w, err := s.In(scope).Writer(ctx, content.WriterOptions{Ref: ref})
	if err != nil {
		return err
	}
	defer w.Close()
	err = finish(ctx, w, b)
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		// What was left there is something else.
		if err = s.In(scope).Abort(ctx, ref); err == nil {
			return t.put(ctx, s, scope, ref, b)
		}
	}
	if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
		return err
	}
	t.is(scope, d, true)
	return nil
}

// finish writes what is missing, in three parts, and commits.
func finish(ctx context.Context, w content.Writer, b []byte) error {
	st, err := w.Status(ctx)
	if err != nil {
		return err
	}
	for at := int(st.Offset); at < len(b); at += 25_000 {
		if _, err := w.Write(b[at:min(at+25_000, len(b))]); err != nil {
			return err
		}
	}
	return w.Commit(ctx, int64(len(b)), digest.FromBytes(b), map[string]string{"a": "1"})
}

// seedOf is where chance begins, to be played again.
const seedOf = "CONTENTD_TEST_SEED"

func newSeed(t *testing.T) uint64 {
	seed, err := strconv.ParseUint(os.Getenv(seedOf), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("%s=%d", seedOf, seed)
	return seed
}

// A cut is where the power goes, and what is forgotten then.
type cut struct {
	at     int
	forget forgetting
	seed   uint64
}

func (c cut) String() string {
	return fmt.Sprintf("cut %d, %s forgotten", c.at, []string{"all names and bytes that are not synced", "no name", "some by chance"}[c.forget])
}

type forgetting int

const (
	everything forgetting = iota // that was not synced
	noNames
	byChance
)

// chance is one of its own for every operation and cut.
func (c cut) chance(name string) *rand.Rand {
	h := fnv.New64a()
	io.WriteString(h, name) // never fails
	return rand.New(rand.NewPCG(c.seed, h.Sum64()+uint64(c.at)))
}

// TestOperationsSurvivePowerLoss cuts the power before the first change that an
// operation makes, to the disk or the database, then before the second, and so
// on, and last when it has run to its end. After each cut the disk has forgotten
// what was never synced, or some of it, and contentd starts again, which is cut
// too. What the clients were told is true then: a blob is whole or absent, and
// whole if a commit said so.
func TestOperationsSurvivePowerLoss(t *testing.T) {
	seed := newSeed(t)
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			for _, forget := range []forgetting{everything, noNames, byChance} {
				for at := 1; o.survives(t, cut{at, forget, seed}); at++ {
				}
			}
		})
	}
}

// newScene is in a store that was just opened.
func newScene(t *testing.T) *scene {
	t.Helper()
	sc := &scene{ctx: t.Context(), cfg: quickConfig(t), writers: map[string]content.Writer{}, told: newTold()}
	sc.p = newPower(t, sc.cfg.Root, 0, false)
	if err := sc.open(); err != nil {
		t.Fatalf("Open: %v", err)
	}
	return sc
}

// survives says whether the power went before the end.
func (o operation) survives(t *testing.T, c cut) bool {
	t.Helper()
	sc := newScene(t)
	defer os.RemoveAll(sc.cfg.Root)
	if err := sc.play(o.before); err != nil {
		t.Fatalf("before: %v", err)
	}
	p := sc.p
	p.keepNames = c.forget == noNames
	if c.forget == byChance {
		p.chance = c.chance(o.name)
	}
	p.cutAt = p.changes + c.at
	err := sc.play(o.steps)
	sc.close(t)
	over := p.left == nil
	if over {
		if err != nil {
			t.Fatalf("without a cut: %v", err)
		}
		p.makeImage() // the power goes when all is said
	}
	p.left.restore(t, sc.cfg.Root)
	when := fmt.Sprintf("%v (%s said %v)", c, o.name, err)
	when += sc.openAgain(t, c, p.chance)
	checkAfter(t, sc, when)
	return !over && !t.Failed()
}

// openAgain opens what is left until another cut.
func (sc *scene) openAgain(t *testing.T, c cut, chance *rand.Rand) (when string) {
	t.Helper()
	at := 1 + c.at%10
	if chance != nil {
		at = 1 + chance.IntN(12)
	}
	p := newPower(t, sc.cfg.Root, at, c.forget == noNames)
	p.chance = chance
	if s, err := p.open(sc.cfg, Needs{}); err == nil {
		closeStore(t, s)
	}
	if p.left == nil {
		return ""
	}
	p.left.restore(t, sc.cfg.Root)
	return fmt.Sprintf(", and change %d of the next start", at)
}

// TestEveryChangeMayFail fails one change of an operation and nothing else. The
// process goes on, and what the clients were told is true then too, and after
// the next start.
func TestEveryChangeMayFail(t *testing.T) {
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			for at := 1; o.failsAt(t, at); at++ {
			}
		})
	}
}

func (o operation) failsAt(t *testing.T, at int) bool {
	t.Helper()
	sc := newScene(t)
	defer os.RemoveAll(sc.cfg.Root)
	if err := sc.play(o.before); err != nil {
		t.Fatalf("before: %v", err)
	}
	p := sc.p
	p.failAt = p.changes + at
	when := fmt.Sprintf("change %d failed (%s said %v)", at, o.name, sc.play(o.steps))
	more := p.changes >= p.failAt
	p.failAt = 0
	if sc.s != nil {
		for _, w := range sc.writers {
			_ = w.Close()
		}
		clear(sc.writers)
		checkTold(t, sc.s, sc.told, when)
		if err := sc.told.put(t.Context(), sc.s, one, "other", body); err != nil {
			t.Errorf("%s: trying again: %v", when, err)
		}
		checkTold(t, sc.s, sc.told, when+", tried again")
	}
	sc.close(t)
	checkAfter(t, sc, when)
	return more && !t.Failed()
}

// checkAfter opens what is left and compares it with what the clients know.
func checkAfter(t *testing.T, sc *scene, when string) {
	t.Helper()
	s, err := Open(sc.cfg, Needs{})
	if err != nil {
		t.Errorf("%s: Open: %v", when, err)
		return
	}
	defer closeStore(t, s)
	s.now = func() time.Time { return time.Now().UTC().Add(sc.ahead) }
	checkTold(t, s, sc.told, when)
	checkIngests(t, s, sc.told, when)
	if err := sc.told.put(t.Context(), s, one, "put", body); err != nil {
		t.Errorf("%s: trying again: %v", when, err)
	}
	checkTold(t, s, sc.told, when+", tried again")
	s.sweep(t.Context())
	checkFiles(t, s, when)
}

// checkTold reads every blob, and those that the clients were told of.
func checkTold(t *testing.T, s *Store, told *told, when string) {
	t.Helper()
	for _, scope := range []namespace.Scope{one, two} {
		for info, err := range s.In(scope).List(t.Context()) {
			if err != nil {
				t.Fatalf("%s: List: %v", when, err)
			}
			b, err := content.ReadAll(t.Context(), s.In(scope), info.Digest, 1<<21)
			if told.rotten[info.Digest] && errors.Is(err, errdefs.ErrDataLoss) {
				continue
			}
			if err != nil || int64(len(b)) != info.Size {
				t.Errorf("%s: blob %s in %s: %d bytes of %d, %v", when, info.Digest, scope.Name, len(b), info.Size, err)
			}
		}
	}
	for at, there := range told.there {
		info, err := s.In(at.scope).Info(t.Context(), at.digest)
		if there && err != nil || !there && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: blob %s in %s was said to be there: %t; Info: %v", when, at.digest, at.scope.Name, there, err)
		}
		if want, ok := told.labels[at]; ok && info.Labels["a"] != want {
			t.Errorf("%s: blob %s in %s has labels %v, and was said to have %q", when, at.digest, at.scope.Name, info.Labels, want)
		}
	}
	has, err := s.ListMembers(t.Context(), one.Name, kept)
	if err != nil {
		t.Errorf("%s: ListMembers: %v", when, err)
	}
	for r, is := range told.members {
		found := false
		for _, other := range has {
			found = found || other == r
		}
		if found != is {
			t.Errorf("%s: %v was said to be a member: %t", when, r, is)
		}
	}
}

// checkIngests goes on with every ingest, whatever it has: a commit names bytes
// by what they are. Those that were closed have what they had.
func checkIngests(t *testing.T, s *Store, told *told, when string) {
	t.Helper()
	for ref, scope := range told.refs {
		want, known := told.ingests[ref]
		st, err := s.In(scope).Status(t.Context(), ref)
		switch {
		case known && want == nil && !errors.Is(err, errdefs.ErrNotFound):
			t.Errorf("%s: ref %s was said to be over; Status: %+v, %v", when, ref, st, err)
		case known && want != nil && (err != nil || st.Offset != want.size):
			t.Errorf("%s: ref %s was said to have %d bytes; Status: %+v, %v", when, ref, want.size, st, err)
		}
		told.doubtRef(ref)
		w, err := s.In(scope).Writer(t.Context(), content.WriterOptions{Ref: ref})
		if err != nil {
			t.Errorf("%s: Writer of ref %s: %v", when, ref, err)
			continue
		}
		d := w.Digest()
		if known && want != nil && d != want.digest && d.Algorithm() == want.digest.Algorithm() {
			t.Errorf("%s: ref %s was said to be %s, and is %s", when, ref, want.digest, d)
		}
		if err := w.Commit(t.Context(), 0, "", nil); err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("%s: Commit of what was left: %v", when, err)
		}
		if d.Algorithm() == digest.SHA256 {
			told.doubt(scope, d)
		}
		if _, err := content.ReadAll(t.Context(), s.In(scope), w.Digest(), 1<<21); err != nil {
			t.Errorf("%s: what was left of ref %s: %v", when, ref, err)
		}
	}
}

// checkFiles wants no file that no record has.
func checkFiles(t *testing.T, s *Store, when string) {
	t.Helper()
	known := map[string]bool{}
	if err := s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("have", ""), nil) {
			known[s.path(digestOf(key))] = true
		}
		for key := range tx.Scan(kv.Key("trash", ""), nil) {
			t.Errorf("%s: trash stays: %q", when, key)
		}
		for key, value := range tx.Scan(kv.Key("ingest", ""), nil) {
			rec, err := readIngest(key, value)
			if err != nil {
				return err
			}
			known[s.ingestPath(rec.File)] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"blobs/*/*", "ingest/*"} {
		names, err := filepath.Glob(filepath.Join(s.cfg.Root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !known[name] {
				t.Errorf("%s: %s has no record", when, name)
			}
		}
	}
}
