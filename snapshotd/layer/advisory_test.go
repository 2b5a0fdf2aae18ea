package layer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff/difftest"
)

// advisories are what was found in others that extract layers: what the layer
// does, on a tree with a link "out" to a directory of the host that has a file
// called "victim" and a directory called "sub".
var advisories = map[string]func(outside string) []difftest.Entry{
	// Modes were set by path, and followed the link.
	"CVE-2021-32760": func(outside string) []difftest.Entry {
		evil := difftest.Dir("sub")
		evil.Mode = 0o777
		through := difftest.Dir("out/sub")
		through.Mode = 0o4777
		link := difftest.Symlink("s", outside+"/victim")
		link.Mode = 0o4777
		return []difftest.Entry{difftest.Symlink("sub", outside+"/sub"), evil, through, link, difftest.Link("h", "s")}
	},
	// An entry for the root itself replaced what the rest was resolved in.
	"CVE-2021-29136": func(outside string) []difftest.Entry {
		return []difftest.Entry{difftest.Symlink(".", outside), difftest.File("victim", "evil")}
	},
	// A chmod or chown of an archive's entry was made outside of the chroot.
	"CVE-2021-41089": func(string) []difftest.Entry {
		evil := difftest.File("out/victim", "evil")
		evil.Uid, evil.Gid, evil.Mode = 4711, 4711, 0o4777
		return []difftest.Entry{evil}
	},
	// Links by which an archive reached files beside where it was extracted.
	"CVE-2026-50162": func(outside string) []difftest.Entry {
		return []difftest.Entry{difftest.Symlink("a", ".."), difftest.Symlink("b", "a/.."+outside), difftest.File("b/victim", "evil")}
	},
	"CVE-2026-50163": func(outside string) []difftest.Entry {
		return []difftest.Entry{difftest.Link("h", "out/victim"), difftest.File("h", "evil")}
	},
	// What was to be removed was looked for outside.
	"CVE-2024-23652": func(string) []difftest.Entry {
		return []difftest.Entry{difftest.File("out/.wh.victim", ""), difftest.File("out/.wh..wh..opq", ""), difftest.File(".wh.out", ""), difftest.File("out", "x")}
	},
}

// TestAdvisories does to a host what others let layers do.
func TestAdvisories(t *testing.T) {
	needRoot(t)
	for name, entries := range advisories {
		for _, detached := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				outside, dir := t.TempDir(), t.TempDir()
				if err := errors.Join(
					os.WriteFile(filepath.Join(outside, "victim"), []byte("alive"), 0o600),
					os.Mkdir(filepath.Join(outside, "sub"), 0o700),
					os.Symlink(outside, filepath.Join(dir, "out")),
				); err != nil {
					t.Fatal(err)
				}
				before := state(t, outside)
				to := plainTree(t, dir)
				to.Overlay, to.Detached, to.Attr = detached, detached, "trusted.overlay."
				err := apply(t, difftest.Tar(entries(outside)...), to)
				if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("Apply: %v", err)
				}
				if diff := cmp.Diff(before, state(t, outside)); diff != "" {
					t.Errorf("outside (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// state tells all that can change of the files in dir.
func state(t *testing.T, dir string) map[string]unix.Stat_t {
	t.Helper()
	all := map[string]unix.Stat_t{}
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(path, &st)
		st.Atim = unix.Timespec{} // the walk's own
		all[path] = st
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestAdvisoryDigestIsNoPath is CVE-2024-3727: a digest with a slash in it.
func TestAdvisoryDigestIsNoPath(t *testing.T) {
	needRoot(t)
	for _, d := range []digest.Digest{"sha256:../../../../etc/passwd", "sha256:" + digest.Digest(strings.Repeat("a/", 32)), "../x:00", "md5:d41d8cd98f00b204e9800998ecf8427e", ""} {
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d}
		_, err := Apply(t.Context(), desc, reader(nil), plainTree(t, t.TempDir()))
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("digest %q: %v, want an invalid argument", d, err)
		}
	}
}

// TestAdvisorySparseMaps is CVE-2025-58183 and CVE-2026-32288: maps of sparse
// files that take memory without bound. The corpus has them; they must not have
// left it.
func TestAdvisorySparseMaps(t *testing.T) {
	var names []string
	for _, h := range difftest.Hostiles("/nowhere") {
		if strings.HasPrefix(h.Name, "a sparse file") && h.Refused {
			names = append(names, h.Name)
		}
	}
	for _, want := range []string{"a sparse file of an exabyte", "a sparse file of more pieces than it has"} {
		if !slices.Contains(names, want) {
			t.Errorf("the corpus has no %q", want)
		}
	}
}
