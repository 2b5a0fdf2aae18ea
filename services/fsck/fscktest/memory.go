package fscktest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/fsck"
)

// Memory is a store of byte strings that can be checked.
type Memory struct {
	// mu guards the field below it.
	mu      sync.Mutex
	objects map[string]string // by the hash of what they were made of
}

var _ fsck.Checker = (*Memory)(nil)

// NewMemory returns one that is empty.
func NewMemory() *Memory { return &Memory{objects: make(map[string]string)} }

// Subject is m, and how to harm it.
func (m *Memory) Subject() Subject {
	return Subject{
		Checker: m,
		Add:     func(_ *testing.T, b string) string { return m.Add(b) },
		Corrupt: func(_ *testing.T, id string) { m.Corrupt(id) },
		Present: func(_ *testing.T, id string) bool { return m.Present(id) },
	}
}

// Add makes an object.
func (m *Memory) Add(b string) (id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id = idOf(b)
	m.objects[id] = b
	return id
}

// Corrupt changes an object's bytes.
func (m *Memory) Corrupt(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[id] += "!"
}

// Present says whether there is such an object.
func (m *Memory) Present(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.objects[id]
	return ok
}

// prefix begins an id, as it does a digest.
const prefix = "sha256:"

func idOf(b string) string {
	sum := sha256.Sum256([]byte(b))
	return prefix + hex.EncodeToString(sum[:])
}

// Check implements [fsck.Checker].
func (m *Memory) Check(ctx context.Context, o fsck.Options) iter.Seq2[fsck.Item, error] {
	return func(yield func(fsck.Item, error) bool) {
		ids, p, err := m.plan(o)
		if err != nil {
			yield(fsck.Item{}, err)
			return
		}
		for _, id := range ids {
			if err := ctx.Err(); err != nil {
				yield(fsck.Item{}, err)
				return
			}
			p.Objects++
			f, size := m.look(id, o.Repair)
			p.Bytes += size
			if f != nil && !yield(fsck.Item{Finding: f, Progress: p}, nil) {
				return
			}
		}
		yield(fsck.Item{Progress: p}, nil)
	}
}

// plan returns whose bytes are to be read.
func (m *Memory) plan(o fsck.Options) (ids []string, p fsck.Progress, err error) {
	if err := o.Check(); err != nil {
		return nil, p, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.Records = int64(len(m.objects))
	for _, id := range o.Only {
		if b, err := hex.DecodeString(strings.TrimPrefix(id, prefix)); err != nil || len(b) != sha256.Size {
			return nil, p, fmt.Errorf("object %q: %w", id, errdefs.ErrInvalidArgument)
		}
		if _, ok := m.objects[id]; !ok {
			return nil, p, fmt.Errorf("object %q: %w", id, errdefs.ErrNotFound)
		}
	}
	ids = o.Only
	if len(ids) == 0 && o.Deep {
		ids = slices.Sorted(maps.Keys(m.objects))
	}
	for _, id := range ids {
		p.ObjectsTotal++
		p.BytesTotal += int64(len(m.objects[id]))
	}
	return ids, p, nil
}

func (m *Memory) look(id string, repair bool) (*fsck.Finding, int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[id]
	if !ok || idOf(b) == id {
		return nil, int64(len(b))
	}
	f := &fsck.Finding{Severity: fsck.Loss, What: "corrupt", ID: id, Why: "its bytes hash to " + idOf(b),
		Refs: []fsck.Ref{{Namespace: "default", Kind: "record", ID: id}, {Namespace: "default", Kind: "lease", ID: "l"}}}
	if repair {
		f.Done = "removed"
		delete(m.objects, id)
	}
	return f, int64(len(b))
}
