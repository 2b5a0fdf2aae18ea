package conformance

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/diff/difftest"
)

// memoryMax is by how much a hostile layer may raise what snapshotd takes.
const memoryMax = 64 << 20

// TestHostileImages imports an image of each hostile layer into a running suite.
// One that is refused gets no name; nothing that is beside the snapshots changes,
// and no daemon ends or grows.
func TestHostileImages(t *testing.T) {
	s := startSuite(t)
	c, err := client.Dial(s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	canary := t.TempDir()
	if err := os.WriteFile(filepath.Join(canary, "file"), []byte("alive"), 0o640); err != nil {
		t.Fatal(err)
	}
	before, pids := treeOf(t, canary), s.status()
	snapshotd := pids["snapshotd"].Pid
	idle := peakMemory(t, snapshotd)

	for i, h := range difftest.Hostiles(canary) {
		name := fmt.Sprintf("hostile:%d", i)
		archive := hostileImage(t, name, h)
		images, err := c.In("hostile").Import(t.Context(), bytes.NewReader(archive), client.ImportOptions{
			OwnNames: true, Snapshotter: client.SnapshotterDefault,
		})
		switch {
		case h.Refused && err == nil:
			t.Errorf("%s: imported as %v", h.Name, images)
		case !h.Refused && err != nil:
			t.Errorf("%s: %v", h.Name, err)
		}
		if after := treeOf(t, canary); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Fatalf("%s: the canary changed from %v to %v", h.Name, before, after)
		}
	}
	for daemon, now := range s.status() {
		if now.Pid != pids[daemon].Pid {
			t.Errorf("%s ended and was started again", daemon)
		}
	}
	peak := peakMemory(t, snapshotd)
	if t.Logf("snapshotd: %d MiB at first, %d MiB at most", idle>>20, peak>>20); peak-idle > memoryMax {
		t.Errorf("snapshotd grew by %d MiB, want at most %d", (peak-idle)>>20, memoryMax>>20)
	}
	s.wantOnlySnapshots(t)
}

// wantOnlySnapshots finds nothing in snapshotd's directories that does not belong
// there.
func (s *suite) wantOnlySnapshots(t *testing.T) {
	t.Helper()
	root := filepath.Join(s.root, "snapshotd", client.SnapshotterDefault)
	entries, err := os.ReadDir(filepath.Join(root, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 64); err != nil {
			t.Errorf("among the snapshots is %q", e.Name())
			continue
		}
		inside, err := os.ReadDir(filepath.Join(root, "snapshots", e.Name()))
		if err != nil && !os.IsNotExist(err) { // collected meanwhile
			t.Error(err)
		}
		for _, f := range inside {
			if f.Name() != "fs" && f.Name() != "work" {
				t.Errorf("snapshot %s has %q", e.Name(), f.Name())
			}
		}
	}
}

// hostileImage is an archive of an image with h as its last layer. What its
// config says of the layers is true as far as it can be.
func hostileImage(t *testing.T, name string, h difftest.Hostile) []byte {
	t.Helper()
	l := clienttest.NewLayout()
	img := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}, Created: new(time.Time)}
	img.OS, img.Architecture = "linux", runtime.GOARCH
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	add := func(data []byte, mediaType string) {
		if mediaType == "" {
			mediaType = ocispec.MediaTypeImageLayer
		}
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, diffID(data, mediaType))
		m.Layers = append(m.Layers, l.Blob(mediaType, string(data)))
	}
	if h.Below != nil {
		add(h.Below, "")
	}
	add(h.Layer, h.MediaType)
	if h.Digest != "" {
		last := &m.Layers[len(m.Layers)-1]
		l.Blobs[h.Digest] = l.Blobs[last.Digest]
		delete(l.Blobs, last.Digest)
		last.Digest = h.Digest
	}
	m.Config = l.JSON(t, ocispec.MediaTypeImageConfig, img)
	l.Add(name, l.JSON(t, m.MediaType, m))
	return l.Archive(t)
}

// diffID is the digest of a layer's uncompressed bytes, or of anything if it does
// not decompress.
func diffID(data []byte, mediaType string) digest.Digest {
	var r io.Reader = bytes.NewReader(data)
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return digest.FromBytes(data)
		}
		r = z
	case ocispec.MediaTypeImageLayerZstd:
		z, err := zstd.NewReader(r)
		if err != nil {
			return digest.FromBytes(data)
		}
		defer z.Close()
		r = z
	}
	d, err := digest.FromReader(r)
	if err != nil {
		return digest.FromBytes(data)
	}
	return d
}

// peakMemory is how much memory a process has had at most, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("process %d has no peak", pid)
	return 0
}
