package pack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/changes"
)

// overlayAttr is where overlayfs keeps its marks.
const overlayAttr = "trusted.overlay."

// A stack is directories that an overlay is made of, the topmost first.
type stack []string

func (s stack) on(t testing.TB) stack {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"fs", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return append(stack{filepath.Join(dir, "fs")}, s...)
}

// mount mounts the stack until the test ends, or end is called. The topmost can
// be written to if it is to be.
func (s stack) mount(t testing.TB, write bool, options ...string) (at string, end func()) {
	t.Helper()
	if len(s) == 1 && !write {
		return s[0], func() {}
	}
	options = append(options, "index=off", "redirect_dir=off", "metacopy=off")
	lower := s
	if write {
		options = append(options, "upperdir="+s[0], "workdir="+filepath.Join(filepath.Dir(s[0]), "work"))
		lower = s[1:]
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	at = t.TempDir()
	mounted := false
	end = func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(at, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
	}
	t.Cleanup(end)
	if err := unix.Mount("overlay", at, "overlay", 0, strings.Join(options, ",")); err != nil {
		t.Fatalf("mount %q: %v", options, err)
	}
	mounted = true
	return at, end
}

// TestUpperDirectoryTellsTheSame changes random overlays at random, and compares
// what their upper directories tell with what the trees do.
func TestUpperDirectoryTellsTheSame(t *testing.T) {
	needRoot(t)
	unclear := 0
	for seed := range seeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			base := t.TempDir()
			tend(t, 3*seed, base, 50)
			s := stack{base}
			if seed%2 == 0 {
				s = s.on(t)
				at, end := s.mount(t, true)
				tend(t, 3*seed+1, at, 20)
				end()
			}
			lowerAt, endLower := s.mount(t, false)
			defer endLower()
			top := s.on(t)
			at, endTop := top.mount(t, true)
			defer endTop()
			tend(t, 3*seed+2, at, 1+int(seed%30))

			lower, whole := open2(t, lowerAt), open2(t, at)
			defer lower.Close()
			defer whole.Close()
			data := write(t, plain, changes.Trees{Lower: lower, Upper: whole})
			again := open(t, clone(t, lowerAt))
			apply(t, ocispec.MediaTypeImageLayer, data, again)
			if diff := cmp.Diff(describe(t, whole), describe(t, again)); diff != "" {
				t.Errorf("the tree (-want +got):\n%s\nlayer:\n%q", diff, entries(t, data))
			}
			var b bytes.Buffer
			_, err := Write(t.Context(), &b, plain, changes.Trees{Lower: lower, Upper: open(t, top[0]), Overlay: overlayAttr}, nil)
			switch {
			case errors.Is(err, changes.ErrUnclear):
				unclear++
			case err != nil:
				t.Fatal(err)
			case !bytes.Equal(b.Bytes(), data):
				t.Errorf("the upper directory tells (-trees +upper):\n%s", cmp.Diff(entries(t, data), entries(t, b.Bytes())))
			}
		})
	}
	t.Logf("%d of %d were not clear", unclear, rounds)
	if unclear > rounds/4 {
		t.Errorf("%d of %d were not clear", unclear, rounds)
	}
}

func open2(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
