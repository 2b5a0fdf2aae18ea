package difftest

import (
	"bytes"
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/namespace"
)

// Blobs is a content store in memory that has, beside what is written to it,
// what tests put there, also blobs that do not hash to their digest. It knows no
// lease.
type Blobs struct {
	memory *contenttest.Memory

	mu    sync.Mutex
	blobs map[blobKey][]byte // guarded by mu; that were put
}

type blobKey struct {
	namespace string
	digest    digest.Digest
}

// NewBlobs returns an empty store.
func NewBlobs() *Blobs {
	return &Blobs{memory: contenttest.NewMemory(nil), blobs: make(map[blobKey][]byte)}
}

// Put adds a blob to a namespace under any digest.
func (b *Blobs) Put(ns string, d digest.Digest, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blobs[blobKey{ns, d}] = data
}

// In implements [content.Stores].
func (b *Blobs) In(scope namespace.Scope) content.Store {
	return blobStore{Store: b.memory.In(scope), blobs: b, scope: scope}
}

type blobStore struct {
	content.Store
	blobs *Blobs
	scope namespace.Scope
}

// Open implements [content.Store].
func (s blobStore) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	s.blobs.mu.Lock()
	data, ok := s.blobs.blobs[blobKey{s.scope.Name, d}]
	s.blobs.mu.Unlock()
	if !ok {
		return s.Store.Open(ctx, d)
	}
	return blobReader{bytes.NewReader(data)}, nil
}

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }
