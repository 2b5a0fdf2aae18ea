package snapshotd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/unpack"
)

// memoryIn is set in the child.
const memoryIn = "SNAPSHOTD_TEST_MEMORY"

// layerMemory is what one layer may take, in KiB.
const layerMemory = 64 << 10

// TestMemoryOfManyLayers unpacks as many layers at once as may be, each as
// expensive as a layer can be, in a process of its own. With the windows that
// zstd makes unless it is told to, all of them together take what one may.
func TestMemoryOfManyLayers(t *testing.T) {
	needRoot(t)
	if difftest.Raced {
		t.Skip("the race detector takes memory of its own")
	}
	if os.Getenv(memoryIn) != "" {
		memoryOfManyLayers(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryOfManyLayers$", "-test.v")
	cmd.Env = append(os.Environ(), memoryIn+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func memoryOfManyLayers(t *testing.T) {
	cfg := testConfig(t)
	inMemory(t, filepath.Dir(cfg.Root))
	needs, blobs := quietNeeds(t), difftest.NewBlobs()
	needs.Content = blobs
	s := openTest(t, cfg, needs)
	for _, kind := range []struct {
		name, mediaType string
		most            int // KiB
		layer           func(i int64) ([]byte, digest.Digest)
	}{
		{"long headers", ocispec.MediaTypeImageLayerGzip, layerMemory, func(i int64) ([]byte, digest.Digest) {
			var entries []difftest.Entry
			for n := range 8 {
				e := difftest.File(fmt.Sprint(i, n), "")
				e.PAXRecords = map[string]string{"comment": strings.Repeat("x", 1_000_000)}
				entries = append(entries, e)
			}
			b := difftest.Tar(entries...)
			return difftest.Gzip(b), digest.FromBytes(b)
		}},
		{"windows of 8 MiB", ocispec.MediaTypeImageLayerZstd, layerMemory, func(i int64) ([]byte, digest.Digest) { return difftest.Wide(23, 20<<20+i) }},
		{"windows of 32 MiB", ocispec.MediaTypeImageLayerZstd, cfg.Applies * layerMemory, func(i int64) ([]byte, digest.Digest) { return difftest.Wide(25, 66<<20+i) }},
	} {
		var layers []unpack.Layer
		for i := range int64(cfg.Applies) {
			b, id := kind.layer(i)
			d := digest.FromBytes(b)
			blobs.Put(one.Name, d, b)
			layers = append(layers, unpack.Layer{Descriptor: ocispec.Descriptor{MediaType: kind.mediaType, Digest: d, Size: int64(len(b))}, DiffID: id})
		}
		service, err := s.Unpacking().In(one, Overlayfs)
		must(t, err)
		debug.FreeOSMemory()
		must(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // the peak is from now on
		before := resident(t, "VmRSS")
		must(t, unpack.Wait(service.Unpack(t.Context(), layers), nil))
		grown := resident(t, "VmHWM") - before
		if t.Logf("%s: %d MiB", kind.name, grown>>10); grown > kind.most {
			t.Errorf("%s: %d MiB of memory, want at most %d", kind.name, grown>>10, kind.most>>10)
		}
	}
}

// resident returns a line of what the kernel says of our memory, in KiB.
func resident(t *testing.T, which string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == which+":" {
			n, err := strconv.Atoi(f[1])
			must(t, err)
			return n
		}
	}
	t.Fatalf("no %s", which)
	return 0
}
