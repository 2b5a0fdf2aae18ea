package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// nothing sees a tree and does nothing.
type nothing struct{}

func (nothing) Enter(string, int, []string) error { return nil }
func (nothing) Visit(*Entry) error                { return nil }
func (nothing) Leave() error                      { return nil }

// TestNamesAreOfABudget, which those of directories that were left are given back
// to.
func TestNamesAreOfABudget(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a", "b", "c"} {
		must(t, os.Mkdir(filepath.Join(root, dir), 0o755))
		for i := range 20 {
			must(t, os.WriteFile(filepath.Join(root, dir, fmt.Sprint(i+10)), nil, 0o600))
		}
	}
	need := 20*SizeOf("10") + 3*SizeOf("a")
	if err := WalkOrdered(t.Context(), openDir(t, root), NewBudget(need), nothing{}); err != nil {
		t.Errorf("with enough: %v", err)
	}
	if err := WalkOrdered(t.Context(), openDir(t, root), NewBudget(need-1), nothing{}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("with too little: %v, want %v", err, errdefs.ErrResourceExhausted)
	}
}

// TestAFileOfManyNamesIsMeasuredOnce, and one of which a name is elsewhere too.
func TestAFileOfManyNamesIsMeasuredOnce(t *testing.T) {
	parent := t.TempDir()
	root := filepath.Join(parent, "root")
	must(t, os.MkdirAll(filepath.Join(root, "d"), 0o755))
	size := int64(0)
	for i := range 5 {
		name := filepath.Join(root, fmt.Sprint(i))
		must(t, os.WriteFile(name, make([]byte, 10_000*(i+1)), 0o600))
		for n := range i {
			must(t, os.Link(name, filepath.Join(root, "d", fmt.Sprint(i, n))))
		}
	}
	must(t, os.Link(filepath.Join(root, "0"), filepath.Join(parent, "outside")))
	for _, name := range []string{".", "d", "1", "2", "3", "4"} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(root, name), &st))
		size += st.Blocks * 512
	}
	var half unix.Stat_t
	must(t, unix.Lstat(filepath.Join(root, "0"), &half))
	size += half.Blocks / 2 * 512
	u, err := Measure(t.Context(), openDir(t, root))
	if want := (Usage{Inodes: 7, Size: size}); u != want || err != nil {
		t.Errorf("Measure: %+v, %v, want %+v", u, err, want)
	}
}

// TestAWalkMeetsAll of more directories than it remembers, once each.
func TestAWalkMeetsAll(t *testing.T) {
	root := t.TempDir()
	want := 0
	for i := range 2*subsMax + 100 {
		must(t, os.Mkdir(filepath.Join(root, fmt.Sprint(i)), 0o755))
		if want++; i%10 == 0 {
			must(t, os.Mkdir(filepath.Join(root, fmt.Sprint(i), "in"), 0o755))
			want++
		}
	}
	met := make(map[string]int)
	must(t, Walk(t.Context(), openDir(t, root), func(e *Entry) error {
		met[e.Path()]++
		if e.Name == "in" {
			return unix.Unlinkat(e.Dir, e.Name, unix.AT_REMOVEDIR) // as a visitor may
		}
		return nil
	}))
	if len(met) != want {
		t.Errorf("met %d, want %d", len(met), want)
	}
	for path, n := range met {
		if n != 1 {
			t.Errorf("met %s %d times", path, n)
		}
	}
}
