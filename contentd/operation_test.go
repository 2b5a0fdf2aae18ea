package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/lease"
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
	large = bytes.Repeat(body, 20) // more than is pending
	more  = append(bytes.Clone(body), "more"...)
	kept  = lease.Ref{ID: "lease", Generation: 1}
)

// An operation is something that a client does, or contentd by itself. The power
// is cut before each change that the steps make, and not in those before them.
type operation struct {
	name   string
	before []step
	steps  []step
}

// operations are all that there are. A new one is a line here, and a step below
// if it is of a new kind.
var operations = []operation{
	{"open a writer", nil, do(opens(one, "r", ""))},
	{"open a writer with a lease", nil, do(opens(one, "r", ""), joins(ingestOf("r")))},
	{"write", do(opens(one, "r", "")), do(writes("r", body[:30_000]), writes("r", body[30_000:]))},
	{"close", do(opens(one, "r", ""), writes("r", body)), do(closes("r"))},
	{"close what is empty", nil, do(opens(one, "r", ""), closes("r"))},
	{"resume", do(opens(one, "r", ""), writes("r", body[:30_000]), closes("r")), do(opens(one, "r", ""), writes("r", body[30_000:]), closes("r"))},
	{"record what is more than a MiB", do(opens(one, "r", "")), do(writes("r", large[:1_000_000]), writes("r", large[1_000_000:]))},
	{"resume what a killed writer left", do(opens(one, "r", ""), writes("r", large[:1_100_000]), dies), do(opens(one, "r", ""), writes("r", large[1_100_000:]), closes("r"))},
	{"commit what a killed writer left", do(opens(one, "r", ""), writes("r", large), dies), do(opens(one, "r", ""), commits("r", large))},
	{"write what a killed writer did not leave", do(opens(one, "r", ""), writes("r", body), dies), do(opens(one, "r", ""), writes("r", body), commits("r", body))},
	{"start over", do(opens(one, "r", ""), writes("r", wrong), closes("r")), do(opens(one, "r", ""), startsOver("r"), writes("r", body), commits("r", body))},
	{"start over and leave", do(opens(one, "r", ""), writes("r", wrong), closes("r")), do(opens(one, "r", ""), startsOver("r"), writes("r", bytes.Repeat([]byte("x"), len(wrong))), closes("r"))},
	{"start over for another digest", do(opens(one, "r", digest.FromBytes(wrong)), writes("r", wrong), closes("r")), do(opens(one, "r", bodyD), writes("r", body), commits("r", body))},
	{"commit", do(opens(one, "r", ""), writes("r", body)), do(commits("r", body))},
	{"commit nothing", do(opens(one, "r", "")), do(commits("r", nil))},
	{"commit in another algorithm", do(opens(one, "r", digest.SHA512.FromBytes(body)), writes("r", body)), do(commitsAs("r", body, digest.SHA512))},
	{"commit what is resumed", do(opens(one, "r", ""), writes("r", body[:30_000]), closes("r")), do(opens(one, "r", ""), writes("r", body[30_000:]), commits("r", body))},
	{"commit what another namespace has", do(puts(two, body)), do(puts(one, body))},
	{"commit what the namespace has", do(puts(one, body), opens(one, "r", ""), writes("r", body)), do(commits("r", body))},
	{"commit what is borrowed", do(puts(two, body), opens(one, "r", bodyD)), do(commits("r", body))},
	{"commit what is borrowed and deleted", do(puts(two, body), opens(one, "r", bodyD)), do(deletes(two, bodyD), sweeps, commits("r", body))},
	{"write to what is borrowed", do(puts(two, body), opens(one, "r", bodyD)), do(writes("r", more[len(body):]), commits("r", more))},
	{"commit over a file that is short", do(puts(one, body), spoils(bodyD, 100), dies, opens(one, "r", "")), do(writes("r", body), commits("r", body))},
	{"commit over a file that is gone", do(puts(one, body), spoils(bodyD, -1), dies, opens(one, "r", "")), do(writes("r", body), commits("r", body))},
	{"open a file to write", nil, do(opensFile(one, "r", ""))},
	{"commit a file", do(opensFile(one, "r", ""), writes("r", body)), do(commits("r", body))},
	{"close a file", do(opensFile(one, "r", ""), writes("r", body)), do(closes("r"))},
	{"resume with a file", do(opens(one, "r", ""), writes("r", body[:30_000]), closes("r")), do(opensFile(one, "r", ""), writes("r", body[30_000:]), commits("r", body))},
	{"resume what was a file", do(opensFile(one, "r", ""), writes("r", body[:30_000]), closes("r")), do(opens(one, "r", ""), writes("r", body[30_000:]), closes("r"))},
	{"commit what a killed writer of a file left", do(opensFile(one, "r", ""), writes("r", body), dies), do(opens(one, "r", ""), commits("r", body))},
	{"start over in a file", do(opens(one, "r", ""), writes("r", wrong), closes("r")), do(opensFile(one, "r", ""), startsOver("r"), writes("r", body), commits("r", body))},
	{"commit as a file what another namespace has", do(puts(two, body), opensFile(one, "r", bodyD)), do(commits("r", body))},
	{"write to a file of what is borrowed", do(puts(two, body), opensFile(one, "r", bodyD)), do(writes("r", more[len(body):]), commits("r", more))},
	{"commit with a lease", do(opens(one, "r", ""), writes("r", body), joins(ingestOf("r"))), do(commits("r", body), joins(contentOf(bodyD)))},
	{"abort", do(opens(one, "r", ""), writes("r", wrong), closes("r")), do(aborts(one, "r"))},
	{"abort what is written, and again", do(opens(one, "r", ""), writes("r", wrong)), do(aborts(one, "r"), closes("r"), puts(one, body))},
	{"delete", do(puts(one, body)), do(deletes(one, bodyD))},
	{"delete what another namespace has", do(puts(one, body), puts(two, body)), do(deletes(one, bodyD))},
	{"delete and commit again", do(puts(one, body)), do(deletes(one, bodyD), puts(one, body), sweeps)},
	{"delete, collect and commit again", do(puts(one, body)), do(deletes(one, bodyD), sweeps, puts(one, body))},
	{"label", do(puts(one, body)), do(labels(bodyD, "1"), labels(bodyD, "2"), labels(bodyD, ""))},
	{"collect", do(puts(one, body), puts(two, wrong), deletes(one, bodyD), deletes(two, digest.FromBytes(wrong))), do(sweeps)},
	{"collect what is committed again", do(puts(one, body), deletes(one, bodyD), puts(two, body)), do(sweeps)},
	{"an ingest expires", do(opens(one, "r", ""), writes("r", wrong), closes("r"), later(25*time.Hour)), do(expires("r"))},
	{"an ingest that is written does not", do(opens(one, "r", ""), writes("r", body), later(25*time.Hour)), do(sweeps, closes("r"))},
	{"a lease is joined and left", do(puts(one, body)), do(joins(contentOf(bodyD)), leaves(contentOf(bodyD)), joins(contentOf(bodyD)))},
	{"a lease is dropped", do(puts(one, body), opens(one, "r", ""), closes("r"), joins(contentOf(bodyD)), joins(ingestOf("r"))), do(drops, expires("r"))},
	{"open", do(puts(one, body), opens(one, "r", ""), writes("r", wrong)), do(dies)},
	{"open for the first time", do(wipes), do(dies)},
	{"open beside files without a record", do(puts(one, body), strays), do(dies, sweeps)},
	{"commit over a file that is corrupt", do(puts(two, body), corrupts(bodyD)), do(heals(one, body))},
	{"quarantine", do(puts(one, body), puts(two, body), corrupts(bodyD)), do(checks(bodyD), puts(one, body))},
}

// A scene is a store and what its clients know.
type scene struct {
	ctx     context.Context
	cfg     Config
	p       *power
	s       *Store
	ahead   time.Duration
	writers map[string]content.Writer // by ref, which has one namespace here
	told    *told
}

// A step is one thing that is done. If it fails, what it is about is in doubt.
type step func(*scene) error

func do(all ...step) []step { return all }

func (sc *scene) play(all []step) error {
	for i, st := range all {
		if err := st(sc); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// open opens the store, as it is found.
func (sc *scene) open() (err error) {
	sc.s, err = sc.p.open(sc.cfg, Needs{})
	if err == nil {
		sc.s.now = func() time.Time { return time.Now().UTC().Add(sc.ahead) }
	}
	return err
}

// close ends the store as a kill would.
func (sc *scene) close(t testing.TB) {
	for _, w := range sc.writers {
		w.(interface{ closeFile() }).closeFile()
	}
	clear(sc.writers)
	if sc.s == nil {
		return
	}
	if err := sc.s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	sc.s = nil
}

func opens(scope namespace.Scope, ref string, expected digest.Digest) step {
	return func(sc *scene) error {
		// What another total or digest was said of starts over.
		delete(sc.told.ingests, ref)
		w, err := sc.s.In(scope).Writer(sc.ctx, content.WriterOptions{Ref: ref, Expected: expected})
		if err == nil {
			sc.writers[ref] = w
			sc.told.refs[ref] = scope
		}
		return err
	}
}

func writes(ref string, b []byte) step {
	return func(sc *scene) error {
		n, err := sc.writers[ref].Write(b)
		if err == nil && n != len(b) {
			err = fmt.Errorf("wrote %d of %d", n, len(b))
		}
		return err
	}
}

func startsOver(ref string) step {
	return func(sc *scene) error { return sc.writers[ref].Truncate(sc.ctx, 0) }
}

func closes(ref string) step {
	return func(sc *scene) error {
		w := sc.writers[ref]
		delete(sc.writers, ref)
		st, err := w.Status(sc.ctx)
		if errors.Is(err, errdefs.ErrNotFound) {
			return w.Close() // aborted
		}
		if err != nil {
			return errors.Join(err, w.Close())
		}
		d := w.Digest()
		if err := w.Close(); err != nil {
			return err
		}
		sc.told.ingests[ref] = &left{size: st.Offset, digest: d}
		return nil
	}
}

func commits(ref string, b []byte) step { return commitsAs(ref, b, digest.SHA256) }

func commitsAs(ref string, b []byte, a digest.Algorithm) step {
	return func(sc *scene) error {
		d, scope := a.FromBytes(b), sc.told.refs[ref]
		sc.told.doubt(scope, d)
		sc.told.doubtRef(ref)
		w := sc.writers[ref]
		delete(sc.writers, ref)
		err := w.Commit(sc.ctx, int64(len(b)), d, map[string]string{"a": "0"})
		switch {
		case errors.Is(err, errdefs.ErrAlreadyExists):
			sc.told.is(scope, d, true)
		case err != nil:
			return err
		default:
			sc.told.is(scope, d, true)
			sc.told.labels[where{scope, d}] = "0"
		}
		sc.told.over(ref)
		return nil
	}
}

func puts(scope namespace.Scope, b []byte) step {
	return func(sc *scene) error { return sc.told.put(sc.ctx, sc.s, scope, "put", b) }
}

// heals puts a blob whose bytes are corrupt.
func heals(scope namespace.Scope, b []byte) step {
	return func(sc *scene) error {
		if err := puts(scope, b)(sc); err != nil {
			return err
		}
		delete(sc.told.rotten, digest.FromBytes(b))
		return nil
	}
}

func deletes(scope namespace.Scope, d digest.Digest) step {
	return func(sc *scene) error {
		sc.told.doubt(scope, d)
		if err := sc.s.In(scope).Delete(sc.ctx, d); err != nil {
			return err
		}
		sc.told.is(scope, d, false)
		return nil
	}
}

func aborts(scope namespace.Scope, ref string) step {
	return func(sc *scene) error {
		sc.told.doubtRef(ref)
		if err := sc.s.In(scope).Abort(sc.ctx, ref); err != nil {
			return err
		}
		sc.told.over(ref)
		return nil
	}
}

func labels(d digest.Digest, value string) step {
	return func(sc *scene) error {
		at := where{one, d}
		delete(sc.told.labels, at)
		if _, err := sc.s.In(one).Update(sc.ctx, content.Info{Digest: d, Labels: map[string]string{"a": value}}, "labels.a"); err != nil {
			return err
		}
		sc.told.labels[at] = value
		return nil
	}
}

func sweeps(sc *scene) error {
	sc.s.sweep(sc.ctx)
	return nil
}

func later(d time.Duration) step {
	return func(sc *scene) error {
		sc.ahead += d
		return nil
	}
}

// expires sweeps an ingest whose time is over.
func expires(ref string) step {
	return func(sc *scene) error {
		sc.told.doubtRef(ref)
		sc.s.sweep(sc.ctx)
		if _, err := sc.s.In(one).Status(sc.ctx, ref); !errors.Is(err, errdefs.ErrNotFound) {
			return fmt.Errorf("an ingest whose time is over: %w", err)
		}
		sc.told.over(ref)
		return nil
	}
}

func joins(r lease.Resource) step {
	return func(sc *scene) error {
		delete(sc.told.members, r)
		if err := sc.s.AddMember(sc.ctx, one.Name, kept, r); err != nil {
			return err
		}
		sc.told.members[r] = true
		return nil
	}
}

func leaves(r lease.Resource) step {
	return func(sc *scene) error {
		delete(sc.told.members, r)
		if err := sc.s.RemoveMember(sc.ctx, one.Name, kept, r); err != nil {
			return err
		}
		sc.told.members[r] = false
		return nil
	}
}

func drops(sc *scene) error {
	was := maps.Clone(sc.told.members)
	clear(sc.told.members)
	if err := sc.s.DropMembers(sc.ctx, one.Name, kept); err != nil {
		return err
	}
	for r := range was {
		sc.told.members[r] = false
	}
	return nil
}

// dies ends the process and starts another.
func dies(sc *scene) error {
	for _, w := range sc.writers {
		w.(interface{ closeFile() }).closeFile()
	}
	clear(sc.writers)
	if sc.s != nil {
		if err := sc.s.Close(); err != nil {
			return err
		}
		sc.s = nil
	}
	return sc.open()
}

// spoils makes the file of a blob shorter than it is, or takes it away, as a file
// system that was mended may.
func spoils(d digest.Digest, size int) step {
	return func(sc *scene) error {
		for _, scope := range []namespace.Scope{one, two} {
			sc.told.doubt(scope, d)
		}
		path := sc.s.path(d)
		if size < 0 {
			delete(sc.p.live, path)
			delete(sc.p.durable, path)
			return os.Remove(path)
		}
		return sc.rewrite(path, sc.p.live[path].synced[:size])
	}
}

// corrupts changes bytes of a blob.
func corrupts(d digest.Digest) step {
	return func(sc *scene) error {
		for _, scope := range []namespace.Scope{one, two} {
			sc.told.doubt(scope, d)
		}
		sc.told.rotten[d] = true
		path := sc.s.path(d)
		b := bytes.Clone(sc.p.live[path].synced)
		b[len(b)/2] ^= 1
		return sc.rewrite(path, b)
	}
}

func (sc *scene) rewrite(path string, b []byte) error {
	sc.p.live[path].synced = b
	return errors.Join(os.Chmod(path, ingestMode), os.WriteFile(path, b, ingestMode), os.Chmod(path, blobMode))
}

// checks finds that a blob is corrupt.
func checks(d digest.Digest) step {
	return func(sc *scene) error {
		found := false
		for item, err := range sc.s.Check(sc.ctx, fsck.Options{Only: []string{d.String()}, Repair: true}) {
			if err != nil {
				return err
			}
			found = found || item.Finding != nil
		}
		if !found {
			return errors.New("a corrupt blob was not found")
		}
		sc.told.rotten[d] = false
		sc.told.is(one, d, false)
		sc.told.is(two, d, false)
		return nil
	}
}

// strays makes files that no record is about.
func strays(sc *scene) error {
	return errors.Join(
		sc.file(sc.s.path(digest.FromBytes(wrong)), wrong),
		sc.file(sc.s.ingestPath(newFile()), wrong),
	)
}

func (sc *scene) file(path string, b []byte) error {
	i := &inode{synced: b}
	sc.p.live[path], sc.p.durable[path] = i, i
	return os.WriteFile(path, b, blobMode)
}

// wipes leaves nothing, and no store.
func wipes(sc *scene) error {
	if err := sc.s.Close(); err != nil {
		return err
	}
	sc.s = nil
	sc.p.live, sc.p.durable = map[string]*inode{}, map[string]*inode{}
	return os.RemoveAll(sc.cfg.Root)
}
