package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
)

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

var (
	body  = bytes.Repeat([]byte("the bytes of a blob, "), 3000)
	bodyD = digest.FromBytes(body)
	wrong = bytes.Repeat([]byte("what was not meant, "), 3500)
)

// A story is what a client does, and what it was told.
type story struct {
	name string
	play func(ctx context.Context, s *Store, told *told) error
}

// told is what the client knows: the blobs that are there and those that are
// not. What it does not know may be either.
type told struct {
	there map[where]bool
}

type where struct {
	scope  namespace.Scope
	digest digest.Digest
}

func (t *told) is(scope namespace.Scope, d digest.Digest, there bool) {
	t.there[where{scope, d}] = there
}

func newTold() *told { return &told{there: map[where]bool{}} }

// doubt is said before the client does something.
func (t *told) doubt(scope namespace.Scope, d digest.Digest) { delete(t.there, where{scope, d}) }

func (t *told) put(ctx context.Context, s *Store, scope namespace.Scope, ref string, b []byte) error {
	d := digest.FromBytes(b)
	t.doubt(scope, d)
	w, err := s.In(scope).Writer(ctx, content.WriterOptions{Ref: ref})
	if err != nil {
		return err
	}
	defer w.Close()
	if err := finish(ctx, w, b); err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
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

func (t *told) remove(ctx context.Context, s *Store, scope namespace.Scope, d digest.Digest) error {
	t.doubt(scope, d)
	if err := s.In(scope).Delete(ctx, d); err != nil {
		return err
	}
	t.is(scope, d, false)
	return nil
}

// leaveHalf writes to an ingest and closes it.
func leaveHalf(ctx context.Context, s *Store, ref string, b []byte) error {
	w, err := s.In(one).Writer(ctx, content.WriterOptions{Ref: ref})
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return errors.Join(err, w.Close())
}

var stories = []story{
	{"a blob is written", func(ctx context.Context, s *Store, told *told) error {
		return told.put(ctx, s, one, "r", body)
	}},
	{"an empty blob is written", func(ctx context.Context, s *Store, told *told) error {
		return told.put(ctx, s, one, "r", nil)
	}},
	{"an ingest is resumed", func(ctx context.Context, s *Store, told *told) error {
		if err := leaveHalf(ctx, s, "r", body[:30_000]); err != nil {
			return err
		}
		if err := leaveHalf(ctx, s, "r", body[30_000:40_000]); err != nil {
			return err
		}
		return told.put(ctx, s, one, "r", body)
	}},
	{"an ingest starts over", func(ctx context.Context, s *Store, told *told) error {
		if err := leaveHalf(ctx, s, "r", wrong); err != nil {
			return err
		}
		w, err := s.In(one).Writer(ctx, content.WriterOptions{Ref: "r"})
		if err != nil {
			return err
		}
		defer w.Close()
		if err := w.Truncate(ctx, 0); err != nil {
			return err
		}
		if err := finish(ctx, w, body); err != nil {
			return err
		}
		told.is(one, bodyD, true)
		return nil
	}},
	{"an ingest starts over and is left", func(ctx context.Context, s *Store, told *told) error {
		if err := leaveHalf(ctx, s, "r", wrong); err != nil {
			return err
		}
		w, err := s.In(one).Writer(ctx, content.WriterOptions{Ref: "r"})
		if err != nil {
			return err
		}
		defer w.Close()
		if err := w.Truncate(ctx, 0); err != nil {
			return err
		}
		// As many bytes as a hash was saved of, and others.
		if _, err := w.Write(bytes.Repeat([]byte("x"), len(wrong))); err != nil {
			return err
		}
		return w.Close()
	}},
	{"two namespaces write the same", func(ctx context.Context, s *Store, told *told) error {
		return errors.Join(told.put(ctx, s, one, "r", body), told.put(ctx, s, two, "r", body))
	}},
	{"a blob is shared", func(ctx context.Context, s *Store, told *told) error {
		if err := told.put(ctx, s, one, "r", body); err != nil {
			return err
		}
		w, err := s.In(two).Writer(ctx, content.WriterOptions{Ref: "r", Expected: bodyD})
		if err != nil {
			return err
		}
		defer w.Close()
		if err := told.remove(ctx, s, one, bodyD); err != nil {
			return err
		}
		s.sweep(ctx)
		if err := w.Commit(ctx, 0, bodyD, nil); err != nil {
			return err
		}
		told.is(two, bodyD, true)
		return nil
	}},
	{"a shared blob is written to", func(ctx context.Context, s *Store, told *told) error {
		if err := told.put(ctx, s, one, "r", body); err != nil {
			return err
		}
		more := append(bytes.Clone(body), "more"...)
		w, err := s.In(two).Writer(ctx, content.WriterOptions{Ref: "r", Expected: bodyD})
		if err != nil {
			return err
		}
		defer w.Close()
		if _, err := w.Write(more[len(body):]); err != nil {
			return err
		}
		if err := w.Commit(ctx, int64(len(more)), digest.FromBytes(more), nil); err != nil {
			return err
		}
		told.is(two, digest.FromBytes(more), true)
		return nil
	}},
	{"a blob is deleted and collected", func(ctx context.Context, s *Store, told *told) error {
		if err := told.put(ctx, s, one, "r", body); err != nil {
			return err
		}
		if err := told.remove(ctx, s, one, bodyD); err != nil {
			return err
		}
		s.sweep(ctx)
		return nil
	}},
	{"a blob is deleted, and written again before and after it is collected", func(ctx context.Context, s *Store, told *told) error {
		{
			if err := told.put(ctx, s, one, "r", body); err != nil {
				return err
			}
			if err := told.remove(ctx, s, one, bodyD); err != nil {
				return err
			}
			if err := told.put(ctx, s, one, "r", body); err != nil {
				return err
			}
			s.sweep(ctx)
			if err := told.remove(ctx, s, one, bodyD); err != nil {
				return err
			}
			s.sweep(ctx)
		}
		return told.put(ctx, s, one, "r", body)
	}},
	{"an ingest is aborted", func(ctx context.Context, s *Store, told *told) error {
		if err := leaveHalf(ctx, s, "r", wrong); err != nil {
			return err
		}
		if err := s.In(one).Abort(ctx, "r"); err != nil {
			return err
		}
		return told.put(ctx, s, one, "r", body)
	}},
}

// TestStoriesSurvivePowerLoss cuts the power before the first change that a
// story makes, then before the second, and so on until it runs to its end. After
// each cut the disk has forgotten what was never synced, and what the client was
// told must be true: a blob is whole or absent, and is whole if a commit said so.
func TestStoriesSurvivePowerLoss(t *testing.T) {
	for _, st := range stories {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			for _, keepNames := range []bool{false, true} {
				for cut := 1; playUntil(t, st, cut, keepNames); cut++ {
				}
			}
		})
	}
}

// playUntil plays a story until the power goes, and says whether it did.
func playUntil(t *testing.T, st story, cut int, keepNames bool) bool {
	t.Helper()
	cfg, told := testConfig(t), newTold()
	defer os.RemoveAll(cfg.Root)
	p, err := playOn(t, cfg, st, told, cut, keepNames)
	if p.left == nil {
		if err != nil {
			t.Fatalf("without a cut: %v", err)
		}
		return false
	}
	p.left.restore(t, cfg.Root)
	checkAfter(t, cfg, told, fmt.Sprintf("cut %d (names kept: %t, the client was told %v)", cut, keepNames, err))
	return true
}

// playOn plays a story in a new store, and returns its error.
func playOn(t *testing.T, cfg Config, st story, told *told, cut int, keepNames bool) (*power, error) {
	t.Helper()
	p := newPower(t, cfg.Root, 0, keepNames)
	s, err := p.open(cfg, Needs{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer closeStore(t, s)
	p.cutAt = p.changes + cut
	return p, st.play(t.Context(), s, told)
}

// TestOpenSurvivesPowerLoss cuts the power in the middle of a story, and then
// before each change that the next Open makes.
func TestOpenSurvivesPowerLoss(t *testing.T) {
	for _, st := range stories[:3] {
		for cut := 6; cut <= 10; cut += 2 {
			t.Run(fmt.Sprintf("%s, cut %d", st.name, cut), func(t *testing.T) {
				t.Parallel()
				openUntil(t, st, cut, cut == 8)
			})
		}
	}
	t.Run("the first", func(t *testing.T) {
		t.Parallel()
		openUntil(t, story{}, 0, false)
	})
}

// openUntil plays a story until a cut and opens what it left until another, and
// does so again for each change that Open makes.
func openUntil(t *testing.T, st story, cut int, keepNames bool) {
	t.Helper()
	for again := 1; ; again++ {
		cfg, told := testConfig(t), newTold()
		if cut > 0 {
			p, _ := playOn(t, cfg, st, told, cut, keepNames)
			if p.left == nil {
				return // the story was over
			}
			p.left.restore(t, cfg.Root)
		}
		p := newPower(t, cfg.Root, again, keepNames)
		s, err := p.open(cfg, Needs{})
		if err == nil {
			closeStore(t, s)
		}
		if p.left == nil {
			if err != nil {
				t.Errorf("Open without a cut: %v", err)
			}
			return
		}
		p.left.restore(t, cfg.Root)
		checkAfter(t, cfg, told, fmt.Sprintf("cut %d, and %d of Open (names kept: %t)", cut, again, keepNames))
		os.RemoveAll(cfg.Root)
	}
}

// TestCommitSyncsWhatAKilledWriterLeft: what is in the file may be in memory
// only.
func TestCommitSyncsWhatAKilledWriterLeft(t *testing.T) {
	cfg := testConfig(t)
	p := newPower(t, cfg.Root, 0, false)
	killed, err := p.open(cfg, Needs{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	w, err := killed.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatalf("Writer: %v", err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatalf("Write: %v", err)
	}
	if err := killed.kv.Close(); err != nil { // and nothing else
		t.Fatal(err)
	}
	w.(*writer).closeFile()

	s, err := p.open(cfg, Needs{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	told := newTold()
	if err := told.put(t.Context(), s, one, "r", body); err != nil {
		t.Fatalf("Put: %v", err)
	}
	p.cutAt = p.changes + 1
	_ = s.In(one).Delete(t.Context(), bodyD)
	closeStore(t, s)
	p.left.restore(t, cfg.Root)
	checkAfter(t, cfg, told, "after the commit")
}

// TestEveryChangeMayFail fails one change of a story and nothing else. The
// process goes on, and what the client was told is true then too, and after the
// next start.
func TestEveryChangeMayFail(t *testing.T) {
	for _, st := range stories {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			for at := 1; failAt(t, st, at); at++ {
			}
		})
	}
}

func failAt(t *testing.T, st story, at int) bool {
	t.Helper()
	cfg, told := testConfig(t), newTold()
	p := newPower(t, cfg.Root, 0, false)
	s, err := p.open(cfg, Needs{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	p.failAt = p.changes + at
	when := fmt.Sprintf("change %d failed (the client was told %v)", at, st.play(t.Context(), s, told))
	more := p.changes >= p.failAt
	p.failAt = 0
	checkTold(t, s, told, when)
	if err := told.put(t.Context(), s, one, "other", body); err != nil {
		t.Errorf("%s: trying again: %v", when, err)
	}
	checkTold(t, s, told, when+", tried again")
	closeStore(t, s)
	checkAfter(t, cfg, told, when)
	os.RemoveAll(cfg.Root)
	return more
}

// checkAfter opens what is left and compares it with what the client was told.
func checkAfter(t *testing.T, cfg Config, told *told, when string) {
	t.Helper()
	s, err := Open(cfg, Needs{})
	if err != nil {
		t.Errorf("%s: Open: %v", when, err)
		return
	}
	defer closeStore(t, s)
	checkTold(t, s, told, when)
	// The ingest that was left goes on, whatever it has: a commit names bytes
	// by what they are.
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Errorf("%s: Writer: %v", when, err)
		return
	}
	d := w.Digest()
	if err := w.Commit(t.Context(), 0, "", nil); err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("%s: Commit of what was left: %v", when, err)
	}
	if _, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil {
		t.Errorf("%s: what was left: %v", when, err)
	}
	if err := told.put(t.Context(), s, one, "r", body); err != nil {
		t.Errorf("%s: trying again: %v", when, err)
	}
	checkTold(t, s, told, when+", tried again")
	s.sweep(t.Context())
	checkFiles(t, s, when)
}

// checkTold reads every blob, and those that the client was told of.
func checkTold(t *testing.T, s *Store, told *told, when string) {
	t.Helper()
	for _, scope := range []namespace.Scope{one, two} {
		for info, err := range s.In(scope).List(t.Context()) {
			if err != nil {
				t.Fatalf("%s: List: %v", when, err)
			}
			b, err := content.ReadAll(t.Context(), s.In(scope), info.Digest, 1<<20)
			if err != nil || int64(len(b)) != info.Size {
				t.Errorf("%s: blob %s in %s: %d bytes of %d, %v", when, info.Digest, scope.Name, len(b), info.Size, err)
			}
		}
	}
	for at, there := range told.there {
		_, err := s.In(at.scope).Info(t.Context(), at.digest)
		if there && err != nil || !there && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: blob %s in %s was said to be there: %t; Info: %v", when, at.digest, at.scope.Name, there, err)
		}
	}
}

// checkFiles wants no file that no record has.
func checkFiles(t *testing.T, s *Store, when string) {
	t.Helper()
	known := map[string]bool{}
	if err := s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("have", ""), nil) {
			known[s.path(digestAt(key, 1))] = true
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
