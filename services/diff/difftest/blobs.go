package difftest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// Blobs is a content store that can only be read, and that is filled by tests,
// also with blobs that do not hash to their digest.
type Blobs struct {
	mu    sync.Mutex
	blobs map[blobKey][]byte // guarded by mu
}

type blobKey struct {
	namespace string
	digest    digest.Digest
}

// NewBlobs returns an empty store.
func NewBlobs() *Blobs { return &Blobs{blobs: make(map[blobKey][]byte)} }

// Put adds a blob to a namespace under any digest.
func (b *Blobs) Put(ns string, d digest.Digest, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blobs[blobKey{ns, d}] = data
}

// In implements [content.Stores].
func (b *Blobs) In(scope namespace.Scope) content.Store { return blobStore{blobs: b, scope: scope} }

// A blobStore has no other methods: to call one is a mistake of the test.
type blobStore struct {
	content.Store
	blobs *Blobs
	scope namespace.Scope
}

// Open implements [content.Store].
func (s blobStore) Open(_ context.Context, d digest.Digest) (content.Reader, error) {
	s.blobs.mu.Lock()
	defer s.blobs.mu.Unlock()
	data, ok := s.blobs.blobs[blobKey{s.scope.Name, d}]
	if !ok {
		return nil, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return blobReader{bytes.NewReader(data)}, nil
}

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }
