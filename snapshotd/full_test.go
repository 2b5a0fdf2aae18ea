package snapshotd

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/snapshot"
)

// TestFullDisk fills a small disk with layers. They are refused, reads and
// removals go on, and what is removed can be used again.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	disk := filepath.Dir(cfg.Root)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=192m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	cfg.FreeMinMiB = freeMinLeast
	blobs := difftest.NewBlobs()
	needs := quietNeeds(t)
	needs.Content = blobs
	s := openTest(t, cfg, needs)
	sn := in(t, s, one)
	prepare(t, sn, "base-key", "")
	commitTo(t, sn, "base", "base-key", "")

	noise := make([]byte, 160<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	archive := difftest.Tar(difftest.File("small", "x"), difftest.File("noise", string(noise)))
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(archive), Size: int64(len(archive))}
	blobs.Put(one.Name, layer.Digest, archive)
	for _, parent := range []string{"", "base"} {
		key := "filled on " + parent
		mounts := prepare(t, sn, key, parent)
		_, err := s.Layers().In(one).Apply(t.Context(), layer, mounts, diff.ApplyOptions{})
		if !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("Apply: %v, want %v", err, errdefs.ErrResourceExhausted)
		}
		if _, err := sn.Stat(t.Context(), key); err != nil {
			t.Errorf("Stat: %v", err)
		}
		if err := sn.Remove(t.Context(), key); err != nil {
			t.Fatalf("Remove: %v", err)
		}
		if err := s.empty(t.Context()); err != nil {
			t.Fatalf("collecting: %v", err)
		}
	}
	if _, err := sn.Prepare(t.Context(), "after", "base", snapshot.Options{}); err != nil {
		t.Errorf("Prepare when there is room again: %v", err)
	}
	if entries, err := os.ReadDir(s.dir()); len(entries) != 2 || err != nil {
		t.Errorf("%d directories, %v, want 2", len(entries), err)
	}
}
