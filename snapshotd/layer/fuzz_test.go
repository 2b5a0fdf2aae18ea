package layer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff/difftest"
)

// FuzzApply extracts anything. It does not end the process, and changes nothing
// beside its tree.
func FuzzApply(f *testing.F) {
	needRoot(f)
	for _, h := range difftest.Hostiles("/nowhere") {
		if len(h.Layer) < 16<<10 && !strings.Contains(h.Name, "exabyte") {
			f.Add(h.Layer, false)
			f.Add(h.Layer, true)
		}
	}
	f.Fuzz(func(t *testing.T, archive []byte, detached bool) {
		dir := t.TempDir()
		root := filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "canary"), []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		to := plainTree(t, root)
		to.Overlay, to.Detached = detached, detached
		Apply(t.Context(), descriptor(archive, ocispec.MediaTypeImageLayerGzip), reader(archive), to)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if diff := cmp.Diff([]string{"canary", "root"}, names); diff != "" {
			t.Errorf("beside the tree (-want +got):\n%s", diff)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "canary")); string(b) != "alive" {
			t.Errorf("the canary is %q, %v", b, err)
		}
	})
}
