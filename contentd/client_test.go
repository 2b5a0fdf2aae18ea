package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// A client does this and that in a namespace of its own, and notes what it was
// told. The bytes it shares with the others.
type client struct {
	id    int
	store content.Store
	rnd   *rand.Rand
	acked *atomic.Int64

	there   map[digest.Digest]bool   // blobs that are, and that are not
	labels  map[digest.Digest]string // label "n" of those that are
	halves  map[string]half          // ingests that were closed, by ref
	resumed int
	failed  atomic.Bool
	wrong   error // why
}

// A half is an ingest that waits for its rest.
type half struct {
	whole []byte
	at    int64
}

func scopeOf(id int) namespace.Scope { return namespace.Scope{Name: fmt.Sprintf("client-%d", id)} }

func newClient(stores content.Stores, id int, seed uint64, acked *atomic.Int64) *client {
	return &client{
		id: id, store: stores.In(scopeOf(id)), rnd: rand.New(rand.NewPCG(seed, uint64(id))), acked: acked,
		there: map[digest.Digest]bool{}, labels: map[digest.Digest]string{}, halves: map[string]half{},
	}
}

// run goes on until ctx ends or something is wrong.
func (c *client) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil && c.wrong == nil; n++ {
		known := slices.DeleteFunc(slices.Sorted(maps.Keys(c.there)), func(d digest.Digest) bool { return !c.there[d] })
		refs := slices.Sorted(maps.Keys(c.halves))
		switch what := c.rnd.IntN(10); {
		case what < 2 && len(known) > 0 || len(known) > 50:
			c.remove(ctx, known[c.rnd.IntN(len(known))])
		case what < 4 && len(known) > 0:
			c.label(ctx, known[c.rnd.IntN(len(known))], fmt.Sprint(n))
		case what < 5 && len(refs) < 5:
			c.leaveHalf(ctx, fmt.Sprintf("half-%d", n), c.body(n))
		case what < 6 && len(refs) > 0:
			c.resume(ctx, refs[c.rnd.IntN(len(refs))])
		default:
			c.put(ctx, fmt.Sprintf("put-%d", n), c.body(n))
		}
	}
}

// body is the same for every client once in three times, and large once in
// thirty.
func (c *client) body(n int) []byte {
	size := 1 + c.rnd.IntN(100_000)
	if c.rnd.IntN(30) == 0 {
		size = 5 << 20
	}
	if c.rnd.IntN(3) == 0 {
		shared := c.rnd.IntN(30)
		return bytes.Repeat(fmt.Appendf(nil, "%d of all, ", shared), 1+shared*shared*10)
	}
	text := fmt.Appendf(nil, "%d of %d, ", n, c.id)
	return bytes.Repeat(text, 1+size/len(text))
}

// try does something until it is told how it went, through any number of kills,
// and says whether it went well.
func (c *client) try(ctx context.Context, what string, do func() error) bool {
	for began := time.Now(); ctx.Err() == nil; {
		err := do()
		switch {
		case err == nil:
			c.acked.Add(1)
			return true
		case ctx.Err() != nil:
		case !away(err):
			c.fail(fmt.Errorf("%s: %w", what, err))
			return false
		case time.Since(began) > patience:
			c.fail(fmt.Errorf("%s: for %v: %w", what, patience, err))
			return false
		}
	}
	return false
}

func (c *client) fail(err error) {
	c.wrong = err
	c.failed.Store(true)
}

// away says whether an error is that of a server that was killed.
func away(err error) bool {
	return errors.Is(err, errdefs.ErrUnavailable) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (c *client) doubt(d digest.Digest) {
	delete(c.there, d)
	delete(c.labels, d)
}

func (c *client) put(ctx context.Context, ref string, b []byte) {
	d := digest.FromBytes(b)
	c.doubt(d)
	o := content.WriterOptions{Ref: ref, Total: int64(len(b)), Expected: d}
	if c.try(ctx, "put", func() error { return content.Put(ctx, c.store, o, bytes.NewReader(b), nil) }) {
		c.there[d] = true
	}
}

func (c *client) remove(ctx context.Context, d digest.Digest) {
	c.doubt(d)
	if c.try(ctx, "delete", func() error {
		if err := c.store.Delete(ctx, d); !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		return nil // by the try before
	}) {
		c.there[d] = false
	}
}

func (c *client) label(ctx context.Context, d digest.Digest, value string) {
	delete(c.labels, d)
	if c.try(ctx, "label", func() error {
		_, err := c.store.Update(ctx, content.Info{Digest: d, Labels: map[string]string{"n": value}}, "labels.n")
		return err
	}) {
		c.labels[d] = value
	}
}

// leaveHalf writes a part of b and closes the writer.
func (c *client) leaveHalf(ctx context.Context, ref string, b []byte) {
	at := int64(1 + c.rnd.IntN(len(b)))
	if c.try(ctx, "leave half", func() error {
		w, err := c.store.Writer(ctx, content.WriterOptions{Ref: ref, Total: int64(len(b))})
		if err != nil {
			return err
		}
		st, err := w.Status(ctx)
		if err == nil && st.Offset > at {
			err = fmt.Errorf("%d bytes are there, and %d were written", st.Offset, at)
		}
		if err == nil {
			_, err = w.Write(b[st.Offset:at])
		}
		return errors.Join(err, w.Close())
	}) {
		c.halves[ref] = half{b, at}
	}
}

// resume writes what is missing and commits.
func (c *client) resume(ctx context.Context, ref string) {
	h := c.halves[ref]
	d := digest.FromBytes(h.whole)
	delete(c.halves, ref)
	c.doubt(d)
	first := true
	if c.try(ctx, "resume", func() error {
		w, err := c.store.Writer(ctx, content.WriterOptions{Ref: ref, Total: int64(len(h.whole))})
		if err != nil {
			return err
		}
		defer w.Close()
		st, err := w.Status(ctx)
		if err != nil {
			return err
		}
		if first && st.Offset != h.at {
			return fmt.Errorf("%d bytes are there of %d that were kept", st.Offset, h.at)
		}
		if _, err := w.Write(h.whole[st.Offset:]); err != nil {
			first = false
			return err
		}
		first = false
		err = w.Commit(ctx, int64(len(h.whole)), d, nil)
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			return nil
		}
		return err
	}) {
		c.there[d] = true
		c.resumed++
	}
}

// verify compares what there is with what the client was told. The server is
// there to stay.
func (c *client) verify(t *testing.T) {
	t.Helper()
	if c.wrong != nil {
		t.Errorf("client %d: %v", c.id, c.wrong)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for d, there := range c.there {
		b, err := content.ReadAll(ctx, c.store, d, 64<<20)
		if there && err != nil || !there && !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("client %d: blob %s was said to be there: %t; it has %d bytes, %v", c.id, d, there, len(b), err)
		}
	}
	for d, want := range c.labels {
		if info, err := c.store.Info(ctx, d); err != nil || info.Labels["n"] != want {
			t.Errorf("client %d: blob %s was said to have label %s: %v, %v", c.id, d, want, info.Labels, err)
		}
	}
	for ref, h := range c.halves {
		if st, err := c.store.Status(ctx, ref); err != nil || st.Offset != h.at {
			t.Errorf("client %d: ref %s was said to have %d bytes: %+v, %v", c.id, ref, h.at, st, err)
		}
	}
	all, err := c.store.ListStatuses(ctx)
	if err != nil {
		t.Errorf("client %d: ListStatuses: %v", c.id, err)
	}
	for _, st := range all {
		// One that was cut off when the clients stopped is let go of soon.
		w, err := content.Wait(ctx, c.store, content.WriterOptions{Ref: st.Ref})
		if err != nil {
			t.Errorf("client %d: ref %s stays held: %v", c.id, st.Ref, err)
			continue
		}
		if err := w.Close(); err != nil {
			t.Errorf("client %d: Close of ref %s: %v", c.id, st.Ref, err)
		}
	}
}
