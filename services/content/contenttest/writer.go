package contenttest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
)

func (s memoryStore) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	l, err := s.lookup(ctx)
	if err != nil {
		return nil, err
	}
	w, err := s.hold(ctx, o, l)
	if err != nil {
		return nil, err
	}
	if o.Expected != "" {
		w.fetch, err = s.fetches.Start(ctx, s.scope.Name, o, s.lends(ctx), w.lookAgain(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && !w.ingest.borrowed {
		err = w.resumeLocked(ctx)
	}
	if w.starting = false; err != nil {
		delete(s.writers, w.key)
		w.fetch.End()
		return nil, err
	}
	return w, nil
}

// hold takes the ref, unless the expected blob is there.
func (s memoryStore) hold(ctx context.Context, o content.WriterOptions, l lease.Ref) (*memoryWriter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := ingestKey{s.scope.Name, o.Ref}
	held := s.writers[key]
	if err := s.thereLocked(ctx, o, l, held == nil); err != nil {
		return nil, err
	}
	if held != nil {
		return nil, fmt.Errorf("ref %s locked: %w", o.Ref, errdefs.ErrUnavailable)
	}
	w := &memoryWriter{memoryStore: s, key: key, options: o, lease: l, ingest: &ingest{}, starting: true}
	s.writers[key] = w
	return w, nil
}

// thereLocked is [errdefs.ErrAlreadyExists] if the namespace has the expected
// blob.
func (s memoryStore) thereLocked(ctx context.Context, o content.WriterOptions, l lease.Ref, forget bool) error {
	if o.Expected == "" {
		return nil
	}
	if _, err := s.infoLocked(o.Expected); err != nil {
		return nil
	}
	if forget {
		s.forgetLocked(ctx, ingestKey{s.scope.Name, o.Ref}, l)
	}
	return s.existsLocked(ctx, o.Expected, l)
}

// lends says what another namespace's fetch is worth.
func (s memoryStore) lends(ctx context.Context) func(namespace string) bool {
	return func(namespace string) bool {
		return s.sharing == content.Shared || content.Shareable(ctx, s.namespaces, namespace)
	}
}

// lookAgain borrows the expected blob if it is there, or is the error for one
// that the namespace has got meanwhile.
func (w *memoryWriter) lookAgain(ctx context.Context) func() (bool, error) {
	return func() (bool, error) {
		l, err := w.lookup(ctx)
		if err != nil {
			return false, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.lease = l
		o := w.options
		if err := w.thereLocked(ctx, o, l, true); err != nil {
			return false, err
		}
		shared, ok := w.bytes[o.Expected]
		if !ok || o.Total != 0 && o.Total != int64(len(shared)) || !w.mayBorrowLocked(ctx, o.Expected) {
			return false, nil
		}
		w.ingest = newIngest(content.WriterOptions{Ref: o.Ref, Total: int64(len(shared)), Expected: o.Expected})
		w.ingest.bytes, w.ingest.borrowed = shared, true
		return true, nil
	}
}

// mayBorrowLocked says whether the policy lets the namespace have the blob.
func (s memoryStore) mayBorrowLocked(ctx context.Context, d digest.Digest) bool {
	if s.sharing == content.Shared {
		return true
	}
	var holders []string
	for k := range s.infos {
		if k.digest == d {
			holders = append(holders, k.namespace)
		}
	}
	return content.Shareable(ctx, s.namespaces, holders...)
}

// existsLocked is the error for a blob that is there, which joins the lease.
func (s memoryStore) existsLocked(ctx context.Context, d digest.Digest, l lease.Ref) error {
	if err := s.join(ctx, l, contentOf(d)); err != nil {
		return err
	}
	return fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
}

func (s memoryStore) forgetLocked(ctx context.Context, key ingestKey, l lease.Ref) {
	delete(s.ingests, key)
	if l.ID != "" {
		_ = s.RemoveMember(ctx, key.namespace, l, ingestOf(key.ref)) // of memory
	}
}

// A memoryWriter holds a ref.
type memoryWriter struct {
	memoryStore
	key     ingestKey
	options content.WriterOptions
	lease   lease.Ref
	fetch   *content.Fetch // nil if it brings no bytes
	ingest  *ingest

	starting bool // it waits for another writer
	over     bool
	sum      digest.Digest // once it is over
}

// resumeLocked finds the ingest, or makes one.
func (w *memoryWriter) resumeLocked(ctx context.Context) error {
	if w.ingest = w.ingests[w.key]; w.ingest == nil || differs(w.ingest.status, w.options) {
		w.ingest = newIngest(w.options)
		w.ingests[w.key] = w.ingest
	}
	st := &w.ingest.status
	if w.options.Total != 0 {
		st.Total = w.options.Total
	}
	if w.options.Expected != "" {
		st.Expected = w.options.Expected
	}
	return w.join(ctx, w.lease, ingestOf(w.key.ref))
}

func differs(st content.Status, o content.WriterOptions) bool {
	return st.Total != 0 && o.Total != 0 && st.Total != o.Total ||
		st.Expected != "" && o.Expected != "" && st.Expected != o.Expected
}

func (w *memoryWriter) usableLocked() error {
	switch {
	case w.over:
		return fmt.Errorf("writer of ref %s is closed: %w", w.key.ref, errdefs.ErrFailedPrecondition)
	case w.ingest.aborted:
		return fmt.Errorf("reference %s: %w", w.key.ref, errdefs.ErrNotFound)
	}
	return nil
}

// ownLocked makes the ingest one of its own, if its bytes are another's.
func (w *memoryWriter) ownLocked() error {
	if !w.ingest.borrowed {
		return nil
	}
	own := newIngest(w.options)
	own.bytes = slices.Clone(w.ingest.bytes)
	w.ingest, w.ingests[w.key] = own, own
	w.collectLocked(w.options.Expected)
	return w.join(context.Background(), w.lease, ingestOf(w.key.ref))
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.ownLocked(); err != nil {
		return 0, err
	}
	w.ingest.bytes = append(w.ingest.bytes, p...)
	w.fetch.At(int64(len(w.ingest.bytes)))
	w.ingest.status.UpdatedAt = time.Now().UTC()
	return len(p), nil
}

func (w *memoryWriter) Status(context.Context) (content.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return content.Status{}, err
	}
	return w.ingest.statusNow(), nil
}

func (w *memoryWriter) Digest() digest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return w.sum
	}
	return w.digestLocked(w.options.Expected)
}

// digestLocked is the digest of the bytes in the algorithm of like.
func (w *memoryWriter) digestLocked(like digest.Digest) digest.Digest {
	if like == "" {
		return digest.Canonical.FromBytes(w.ingest.bytes)
	}
	return like.Algorithm().FromBytes(w.ingest.bytes)
}

func (w *memoryWriter) Truncate(_ context.Context, size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return err
	}
	offset := int64(len(w.ingest.bytes))
	if err := content.CheckTruncate(size, offset); err != nil || size == offset {
		return err
	}
	if err := w.ownLocked(); err != nil {
		return err
	}
	w.ingest.bytes = nil
	w.ingest.status.UpdatedAt = time.Now().UTC()
	return nil
}

func (w *memoryWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	defer w.Close()
	claim, err := content.NewClaim(w.options, size, expected, labels)
	if err != nil {
		return err
	}
	l, err := w.lookup(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return err
	}
	d := w.digestLocked(claim.Expected)
	exists := func(d digest.Digest) bool { _, err := w.infoLocked(d); return err == nil }
	if claim.Expected != "" && exists(claim.Expected) {
		d = claim.Expected
	} else if err := claim.Check(w.key.ref, int64(len(w.ingest.bytes)), d); err != nil {
		return err
	}
	w.forgetLocked(ctx, w.key, l)
	if exists(d) {
		return w.existsLocked(ctx, d, l)
	}
	now := time.Now().UTC()
	w.bytes[d] = w.ingest.bytes
	w.infos[infoKey{w.key.namespace, d}] = content.Info{
		Digest: d, Size: int64(len(w.ingest.bytes)), CreatedAt: now, UpdatedAt: now, Labels: label.Clean(labels),
	}
	w.sum = d
	w.fetch.Landed()
	return w.join(ctx, l, contentOf(d))
}

func (w *memoryWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		if w.sum == "" {
			w.sum = w.digestLocked(w.options.Expected)
		}
		w.over = true
		delete(w.writers, w.key)
		if w.ingest.borrowed {
			w.collectLocked(w.options.Expected)
		}
		w.fetch.End()
	}
	return nil
}
