package changes

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestCompareTellsEveryKind of difference by its path, and nothing of what is the
// same.
func TestCompareTellsEveryKind(t *testing.T) {
	needRoot(t)
	paths := []string{"a/", "a/same", "a/b/", "bytes", "long", "mode", "of", "when", "what", "attr", "dir/", "dir/x", "gone/", "gone/x"}
	want, got := plant(t, paths...), plant(t, paths...)
	for minor, dir := range []string{want, got} {
		must(t, os.Symlink(fmt.Sprint("to ", minor), filepath.Join(dir, "link")))
		must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(minor+3)))))
		still(t, dir)
	}
	in := func(name string) string { return filepath.Join(got, name) }
	b, err := os.ReadFile(in("bytes"))
	must(t, err)
	b[0] ^= 1
	must(t, os.WriteFile(in("bytes"), b, 0), os.Chtimes(in("bytes"), settled, settled))
	must(t, os.WriteFile(in("long"), append(b, b...), 0), os.Chtimes(in("long"), settled, settled))
	must(t, os.Chmod(in("mode"), 0o4755), os.Chown(in("of"), 1, 2), os.Chtimes(in("when"), settled, settled.Add(time.Second)))
	must(t, os.Remove(in("what")), os.Mkdir(in("what"), 0o755), os.RemoveAll(in("gone")))
	must(t, unix.Setxattr(in("attr"), "user.x", []byte("y"), 0), unix.Setxattr(in("a/b"), "user.x", []byte("y"), 0))
	must(t, os.Mkdir(in("extra"), 0o755), os.WriteFile(in("extra/below"), nil, 0o600), os.Chmod(in("dir"), 0o700))
	var all []string
	read, looks := int64(0), 0
	must(t, Compare(t.Context(), Comparison{
		Want: open(t, want), Got: open(t, got),
		Read: func(n int64) error { read += n; return nil },
		Visit: func(d Difference) error {
			if d.Looks() {
				looks++
			}
			all = append(all, d.String())
			return nil
		},
	}))
	wanted := []string{
		`"/a/b": extended attributes`, `"/attr": extended attributes`, `"/bytes": contents`, `"/dir": mode`, `"/extra": extra`,
		`"/gone": missing`, `"/link": target`, `"/long": size`, `"/mode": mode`, `"/null": device`, `"/of": owner`, `"/what": type`, `"/when": time`,
	}
	if d := cmp.Diff(wanted, all); d != "" {
		t.Errorf("differences (-want +got):\n%s", d)
	}
	if looks != 10 || read == 0 {
		t.Errorf("%d are of looks, and %d bytes were read", looks, read)
	}
}
