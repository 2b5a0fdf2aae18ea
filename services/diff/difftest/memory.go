package difftest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
)

// Memory applies layers to trees in memory, and makes layers of them. They have
// names instead of places, and describe files instead of having them.
type Memory struct {
	blobs content.Stores

	mu    sync.Mutex
	trees map[string]memoryTree // guarded by mu; by the source of the mount
}

type memoryTree struct {
	namespace string
	files     map[string]string
}

var _ diff.Services = (*Memory)(nil)

// NewMemory returns a service that reads layers from blobs.
func NewMemory(blobs content.Stores) *Memory {
	return &Memory{blobs: blobs, trees: make(map[string]memoryTree)}
}

// Tree is what [Fixture] wants.
func (m *Memory) Tree(t *testing.T, scope namespace.Scope, below ...[]byte) Tree {
	t.Helper()
	files := make(map[string]string)
	for _, b := range below {
		if err := extract(files, b); err != nil {
			t.Fatalf("layer below: %v", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := fmt.Sprintf("/nowhere/%d", len(m.trees))
	m.trees[name] = memoryTree{scope.Name, files}
	return Tree{
		Mounts: []mount.Mount{{Type: "bind", Source: name, Options: []string{"rw", "rbind"}}},
		Files: func(*testing.T) map[string]string {
			m.mu.Lock()
			defer m.mu.Unlock()
			return maps.Clone(files)
		},
	}
}

// In implements [diff.Services].
func (m *Memory) In(scope namespace.Scope) diff.Service { return memoryService{m: m, scope: scope} }

type memoryService struct {
	m     *Memory
	scope namespace.Scope
}

func (s memoryService) Apply(ctx context.Context, layer ocispec.Descriptor, mounts []mount.Mount, _ diff.ApplyOptions) (ocispec.Descriptor, error) {
	if err := cmp.Or(ctx.Err(), layer.Digest.Validate()); err != nil {
		return ocispec.Descriptor{}, cmp.Or(ctx.Err(), fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
	}
	if !strings.Contains(layer.MediaType, "layer") && !strings.Contains(layer.MediaType, "rootfs") ||
		strings.HasSuffix(layer.MediaType, "encrypted") || strings.HasSuffix(layer.MediaType, "erofs") {
		return ocispec.Descriptor{}, fmt.Errorf("media type %q: %w", layer.MediaType, errdefs.ErrNotImplemented)
	}
	r, err := s.m.blobs.In(s.scope).Open(ctx, layer.Digest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if digest.FromBytes(data) != layer.Digest || int64(len(data)) != layer.Size {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s is another: %w", layer.Digest, errdefs.ErrInvalidArgument)
	}
	plain, err := unpack(data)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	files, err := s.filesLocked(mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := extract(files, plain); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(plain), Size: int64(len(plain))}, nil
}

// filesLocked returns the tree that mounts are of; Memory.mu is held.
func (s memoryService) filesLocked(mounts []mount.Mount) (map[string]string, error) {
	if len(mounts) == 1 {
		if t, ok := s.m.trees[mounts[0].Source]; ok && t.namespace == s.scope.Name {
			return t.files, nil
		}
	}
	return nil, fmt.Errorf("mounts %v: %w", mounts, errdefs.ErrInvalidArgument)
}

// unpack knows gzip, and zstd as [Zstd] makes it.
func unpack(b []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	case bytes.HasPrefix(b, []byte{0x28, 0xb5}):
		var out []byte
		for b = b[6:]; len(b) > 3; {
			n := int(b[0])>>3 | int(b[1])<<5 | int(b[2])<<13
			out, b = append(out, b[3:3+n]...), b[3+n:]
		}
		return out, nil
	}
	return b, nil
}

// extract adds an archive to files.
func extract(files map[string]string, archive []byte) error {
	made := make(map[string]bool)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := put(files, made, h, string(body)); err != nil {
			return err
		}
	}
}

func put(files map[string]string, made map[string]bool, h *tar.Header, body string) error {
	name := path.Clean(h.Name)
	if name == ".." || strings.HasPrefix(name, "../") {
		return fmt.Errorf("%q climbs out", h.Name)
	}
	dir, base := path.Split(name)
	// Links on the way, one level of them.
	parts := strings.SplitN(dir, "/", 2)
	if target, is := strings.CutPrefix(files[parts[0]], "link "); is {
		dir = path.Join(target, parts[1]) + "/"
	}
	if hidden, is := strings.CutPrefix(base, ".wh."); is {
		under := path.Join(dir, hidden)
		if hidden == ".wh..opq" {
			under = path.Clean(dir)
		}
		maps.DeleteFunc(files, func(p, _ string) bool {
			return !made[p] && (p == under && hidden != ".wh..opq" || strings.HasPrefix(p, under+"/"))
		})
		return nil
	}
	for _, p := range slices.Sorted(parents(dir)) {
		if files[p] == "" {
			files[p] = "dir"
		}
	}
	name = dir + base
	made[name] = true
	switch h.Typeflag {
	case tar.TypeDir:
		files[name] = "dir"
	case tar.TypeReg:
		files[name] = "file " + body
	case tar.TypeSymlink:
		files[name] = "link " + h.Linkname
	case tar.TypeLink:
		target, ok := files[path.Clean(h.Linkname)]
		if !ok {
			return fmt.Errorf("%q is a link to nothing", h.Name)
		}
		files[name] = target
	default:
		return fmt.Errorf("%q is of type %q", h.Name, h.Typeflag)
	}
	return nil
}

// parents yields the directories on the way to dir, which ends in a slash.
func parents(dir string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i, c := range dir {
			if c == '/' && !yield(dir[:i]) {
				return
			}
		}
	}
}
