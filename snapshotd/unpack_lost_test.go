package snapshotd

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack"
)

// TestWhatWasUnpackedIsMadeAgain: its record when the database is lost, and its
// tree when that is damaged.
func TestWhatWasUnpackedIsMadeAgain(t *testing.T) {
	needRoot(t)
	blobs, cfg, needs := difftest.NewBlobs(), testConfig(t), quietNeeds(t)
	needs.Content = blobs
	s, err := Open(cfg, needs)
	must(t, err)
	var layers []unpack.Layer
	for _, b := range [][]byte{
		difftest.Tar(difftest.Dir("dir"), difftest.File("dir/a", "first")),
		difftest.Tar(difftest.File("dir/b", "second")),
	} {
		d := digest.FromBytes(b)
		blobs.Put(one.Name, d, b)
		layers = append(layers, unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))}, DiffID: d,
		})
	}
	names, err := unpack.Names(layers)
	must(t, err)
	service, err := s.Unpacking().In(one, Overlayfs)
	must(t, err)
	for _, err := range service.Unpack(t.Context(), layers) {
		must(t, err)
	}
	must(t, s.Close())
	must(t, os.RemoveAll(filepath.Join(cfg.Root, "db")))

	s = openTest(t, cfg, needs)
	sn := in(t, s, one)
	for i, name := range names {
		if info, err := sn.Stat(t.Context(), name); err != nil || info.Kind != snapshot.Committed || i > 0 && info.Parent != names[i-1] {
			t.Errorf("layer %d is %+v, %v", i, info, err)
		}
	}
	r, _, err := sn.read(names[1])
	must(t, err)
	must(t, os.Truncate(filepath.Join(s.fs(r.ID), "dir", "b"), 0))
	if f := findings(t, s, fsck.Options{Repair: true})["changed overlayfs/one/"+names[1]]; f.Done == "" {
		t.Errorf("the damaged one: %+v", f)
	}
	if files := look(t, s, one, names[1]); files["dir/a"] == "" || files["dir/b"] == "" {
		t.Errorf("files %v", files)
	}
}
