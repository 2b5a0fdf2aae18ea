package changes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/snapshotd/tree"
)

// TestWhatIsRememberedIsBounded has more links, and more names in a directory, than
// there is memory for.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	links, names, lower := t.TempDir(), t.TempDir(), open(t, t.TempDir())
	for i := range 100 {
		dir, file := filepath.Join(links, fmt.Sprint("d", i)), filepath.Join(names, fmt.Sprint(i))
		first := filepath.Join(dir, "1")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(first, nil, 0o600), os.Link(first, filepath.Join(dir, "2")), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	root := tree.SizeOf("dxx") * 100
	for name, c := range map[string]struct {
		trees  Trees
		budget int64
		fits   bool
	}{
		"names, enough":         {Trees{Upper: open(t, names)}, root, true},
		"names, too little":     {Trees{Upper: open(t, names)}, root / 2, false},
		"links, enough":         {Trees{Upper: open(t, links)}, root + 200*groupSize, true},
		"links, too little":     {Trees{Upper: open(t, links)}, root + 50*groupSize, false},
		"on a tree, enough":     {Trees{Lower: lower, Upper: open(t, links)}, root + 200*groupSize, true},
		"on a tree, too little": {Trees{Lower: lower, Upper: open(t, links)}, root + 50*groupSize, false},
	} {
		err := walkWithin(t.Context(), c.trees, tree.NewBudget(c.budget), func(*Change) error { return nil })
		if c.fits && err != nil || !c.fits && !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
