package contenttest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
)

// Memory keeps content in memory. Bytes that no namespace has a record of, and no
// writer borrows, are gone at once, and no ingest is ever forgotten.
type Memory struct {
	leasetest.Members
	leases     lease.Registry
	sharing    content.Sharing
	namespaces content.Namespaces
	fetches    content.Fetches

	// mu guards the fields below it, and those of every writer.
	mu      sync.Mutex
	infos   map[infoKey]content.Info
	bytes   map[digest.Digest][]byte
	ingests map[ingestKey]*ingest
	writers map[ingestKey]*memoryWriter // who holds the refs
}

type (
	infoKey struct {
		namespace string
		digest    digest.Digest
	}
	ingestKey struct{ namespace, ref string }
)

// An ingest is what was written under a ref.
type ingest struct {
	status   content.Status
	bytes    []byte
	borrowed bool // the bytes are a blob's, and nothing was written
	aborted  bool
}

var (
	_ content.Stores   = (*Memory)(nil)
	_ lease.Members    = (*Memory)(nil)
	_ namespace.Holder = (*Memory)(nil)
	_ content.Store    = memoryStore{}
	_ content.Writer   = (*memoryWriter)(nil)
	_ content.Reader   = memoryReader{}
)

// NewMemory returns an empty store. The registry says which leases exist; nil
// knows none.
func NewMemory(leases lease.Registry) *Memory {
	return &Memory{
		leases:  leases,
		sharing: content.Shared,
		infos:   make(map[infoKey]content.Info),
		bytes:   make(map[digest.Digest][]byte),
		ingests: make(map[ingestKey]*ingest),
		writers: make(map[ingestKey]*memoryWriter),
	}
}

// NewIsolated is NewMemory with the policy [content.Isolated].
func NewIsolated(leases lease.Registry, namespaces content.Namespaces) *Memory {
	m := NewMemory(leases)
	m.sharing, m.namespaces = content.Isolated, namespaces
	return m
}

// In implements [content.Stores].
func (m *Memory) In(scope namespace.Scope) content.Store { return memoryStore{m, scope} }

// Holdings implements [namespace.Holder].
func (m *Memory) Holdings(context.Context) ([]namespace.Holding, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make(map[string]bool)
	for k := range m.infos {
		names[k.namespace] = true
	}
	var all []namespace.Holding
	for _, n := range slices.Sorted(maps.Keys(names)) {
		all = append(all, namespace.Holding{Namespace: n, Kind: namespace.KindBlobs})
	}
	return all, nil
}

type memoryStore struct {
	*Memory
	scope namespace.Scope
}

func (s memoryStore) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.infoLocked(d)
}

func (s memoryStore) infoLocked(d digest.Digest) (content.Info, error) {
	if err := content.CheckDigest(d); err != nil {
		return content.Info{}, err
	}
	info, ok := s.infos[infoKey{s.scope.Name, d}]
	if !ok {
		return content.Info{}, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	info.Labels = maps.Clone(info.Labels)
	return info, nil
}

func (s memoryStore) Update(_ context.Context, info content.Info, fields ...string) (content.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	updated, err := s.infoLocked(info.Digest)
	if err != nil {
		return content.Info{}, err
	}
	if updated.Labels, err = label.Update(updated.Labels, info.Labels, fields); err != nil {
		return content.Info{}, err
	}
	updated.UpdatedAt = time.Now().UTC()
	s.infos[infoKey{s.scope.Name, info.Digest}] = updated
	updated.Labels = maps.Clone(updated.Labels)
	return updated, nil
}

func (s memoryStore) List(_ context.Context, filters ...string) iter.Seq2[content.Info, error] {
	return func(yield func(content.Info, error) bool) {
		f, err := filter.Parse(filters...)
		if err != nil {
			yield(content.Info{}, err)
			return
		}
		for _, info := range s.list(f) {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (s memoryStore) list(f filter.Filter) []content.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []content.Info
	for k := range s.infos {
		if info, err := s.infoLocked(k.digest); err == nil && k.namespace == s.scope.Name && f.Match(info.Field) {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b content.Info) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return all
}

func (s memoryStore) Delete(ctx context.Context, d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.infoLocked(d); err != nil {
		return err
	}
	delete(s.infos, infoKey{s.scope.Name, d})
	s.collectLocked(d)
	if l, err := s.lookup(ctx); err == nil && l.ID != "" {
		return s.RemoveMember(ctx, s.scope.Name, l, contentOf(d))
	}
	return nil
}

// collectLocked drops the bytes that nobody has.
func (m *Memory) collectLocked(d digest.Digest) {
	for k := range m.infos {
		if k.digest == d {
			return
		}
	}
	for _, w := range m.writers {
		if w.ingest.borrowed && w.options.Expected == d {
			return
		}
	}
	delete(m.bytes, d)
}

func (s memoryStore) Open(_ context.Context, d digest.Digest) (content.Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.infoLocked(d); err != nil {
		return nil, err
	}
	return memoryReader{bytes.NewReader(s.bytes[d])}, nil
}

type memoryReader struct{ *bytes.Reader }

func (r memoryReader) Close() error { return nil }

// lookup returns the lease of the scope, or none.
func (s memoryStore) lookup(ctx context.Context) (lease.Ref, error) {
	if s.scope.Lease == "" {
		return lease.Ref{}, nil
	}
	if s.leases == nil {
		return lease.Ref{}, fmt.Errorf("lease does not exist: %w", errdefs.ErrNotFound)
	}
	return s.leases.Lookup(ctx, s.scope)
}

// join makes r a resource of l, if that is one.
func (s memoryStore) join(ctx context.Context, l lease.Ref, r lease.Resource) error {
	if l.ID == "" {
		return nil
	}
	return s.AddMember(ctx, s.scope.Name, l, r)
}

func contentOf(d digest.Digest) lease.Resource {
	return lease.Resource{ID: d.String(), Type: lease.TypeContent}
}

func ingestOf(ref string) lease.Resource {
	return lease.Resource{ID: ref, Type: lease.TypeIngests}
}

func newIngest(o content.WriterOptions) *ingest {
	now := time.Now().UTC()
	return &ingest{status: content.Status{
		Ref: o.Ref, Total: o.Total, Expected: o.Expected, StartedAt: now, UpdatedAt: now,
	}}
}

func (s memoryStore) Status(_ context.Context, ref string) (content.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.ingests[ingestKey{s.scope.Name, ref}]
	if !ok {
		return content.Status{}, fmt.Errorf("reference %s: %w", ref, errdefs.ErrNotFound)
	}
	return i.statusNow(), nil
}

func (i *ingest) statusNow() content.Status {
	st := i.status
	st.Offset = int64(len(i.bytes))
	return st
}

func (s memoryStore) ListStatuses(_ context.Context, filters ...string) ([]content.Status, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []content.Status
	for k, i := range s.ingests {
		if k.namespace == s.scope.Name && f.Match(i.status.Field) {
			all = append(all, i.statusNow())
		}
	}
	slices.SortFunc(all, func(a, b content.Status) int { return strings.Compare(a.Ref, b.Ref) })
	return all, nil
}

func (s memoryStore) Abort(ctx context.Context, ref string) error {
	l, _ := s.lookup(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	key := ingestKey{s.scope.Name, ref}
	w, open := s.writers[key]
	open = open && !w.starting
	if _, ok := s.ingests[key]; !ok && (!open || w.ingest.aborted) {
		return fmt.Errorf("reference %s: %w", ref, errdefs.ErrNotFound)
	}
	if open {
		w.ingest.aborted = true
	}
	s.forgetLocked(ctx, key, l)
	return nil
}
