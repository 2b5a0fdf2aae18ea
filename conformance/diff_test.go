package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/snapshotd/changes"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/pack"
)

// stacks is how many random stacks of layers are tried.
const stacks = 200

// TestRandomLayersAsUmoci extracts stacks of random layers with umoci and with
// ours: the trees are the same.
func TestRandomLayersAsUmoci(t *testing.T) {
	needRoot(t)
	needUmoci(t)
	for seed := range uint64(stacks) {
		layers := difftest.Random(seed, 1+int(seed%4))
		ours := extract(t, layers)
		theirs := umoci(t, layers)
		if diff := cmp.Diff(whole(t, theirs), whole(t, ours)); diff != "" {
			t.Fatalf("seed %d (-umoci +ours):\n%s", seed, diff)
		}
	}
}

// TestDebianAsUmoci does the same with a real root file system, and makes a layer
// of it, and of what a package manager might change.
func TestDebianAsUmoci(t *testing.T) {
	needRoot(t)
	needUmoci(t)
	layout := t.TempDir()
	command(t, "tar", "-C", layout, "-xf", debian(t))
	bundle := filepath.Join(t.TempDir(), "bundle")
	command(t, "umoci", "unpack", "--image", layout+":debian12", bundle)
	theirs := filepath.Join(bundle, "rootfs")
	ours := t.TempDir()
	for _, l := range layersOf(t, layout, "debian12") {
		open := func(context.Context) (io.ReadCloser, error) { return os.Open(blobPath(layout, l.Digest)) }
		if err := applyOurs(t, l, open, ours); err != nil {
			t.Fatal(err)
		}
	}
	want := whole(t, ours)
	if diff := cmp.Diff(whole(t, theirs), want); diff != "" {
		t.Fatalf("the trees (-umoci +ours):\n%.4000s", diff)
	}
	again := t.TempDir()
	applyArchive(t, difference(t, "", ours), again)
	if diff := cmp.Diff(want, whole(t, again)); diff != "" {
		t.Errorf("the layer of the whole tree (-want +got):\n%.4000s", diff)
	}
	for _, step := range []string{
		"rm -r usr/share/doc && mkdir usr/share/doc && touch usr/share/doc/new", "mv usr/bin/perl usr/bin/perl.old",
		"chmod 4755 usr/bin/id", "ln usr/bin/id usr/bin/who-am-i", "rm -r etc/apt", "cp -a --remove-destination usr/bin/bash usr/bin/rbash",
	} {
		command(t, "sh", "-c", "cd "+ours+" && "+step)
	}
	applyArchive(t, difference(t, again, ours), again)
	if diff := cmp.Diff(whole(t, ours), whole(t, again)); diff != "" {
		t.Errorf("the changed tree (-want +got):\n%.4000s", diff)
	}
}

// TestDiffsAsContainerd makes layers of the difference of random trees with
// containerd's code and with ours, and applies each with the other's: either
// makes the same tree, as far as containerd's layers can say.
func TestDiffsAsContainerd(t *testing.T) {
	needRoot(t)
	for seed := range uint64(stacks) {
		layers := difftest.Random(1000+seed, 2+int(seed%3))
		lower, upper := extract(t, layers[:1]), extract(t, layers)
		ours := difference(t, lower, upper)
		var theirs bytes.Buffer
		if err := archive.WriteDiff(t.Context(), &theirs, lower, upper); err != nil {
			t.Fatal(err)
		}
		byTheirs, byOurs := extract(t, layers[:1]), extract(t, layers[:1])
		if _, err := archive.Apply(t.Context(), byTheirs, bytes.NewReader(ours)); err != nil {
			t.Fatalf("seed %d: containerd applies our layer: %v", seed, err)
		}
		applyArchive(t, theirs.Bytes(), byOurs)
		if diff := cmp.Diff(applicable(whole(t, upper)), applicable(whole(t, byTheirs))); diff != "" {
			t.Errorf("seed %d: our layer, applied by containerd (-want +got):\n%s", seed, diff)
		}
		if diff := cmp.Diff(sayable(whole(t, upper)), sayable(whole(t, byOurs))); diff != "" {
			t.Errorf("seed %d: containerd's layer, applied by us (-want +got):\n%s", seed, diff)
		}
		if t.Failed() {
			return
		}
	}
}

// sayable leaves out what containerd's layers do not have: fractions of seconds,
// and attributes but capabilities.
func sayable(tree map[string]string) map[string]string {
	for p, s := range tree {
		fields := strings.Split(s, "; ")
		kept := fields[:0]
		for _, f := range fields {
			switch {
			case strings.HasPrefix(f, "user."):
				continue
			case strings.HasPrefix(f, "time "):
				f, _, _ = strings.Cut(f, ".")
			}
			kept = append(kept, f)
		}
		tree[p] = strings.Join(kept, "; ")
	}
	return tree
}

// applicable leaves out the attributes of directories: containerd leaves those that
// a directory had before.
func applicable(tree map[string]string) map[string]string {
	for p, s := range tree {
		if strings.HasPrefix(s, "4") {
			tree[p], _, _ = strings.Cut(s, "; user.")
		}
	}
	return tree
}

// extract applies layers to an empty directory, with ours.
func extract(t *testing.T, layers [][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for _, l := range layers {
		applyArchive(t, l, dir)
	}
	return dir
}

func applyArchive(t *testing.T, data []byte, dir string) {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	if err := applyOurs(t, desc, open, dir); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// difference is the layer that turns lower into upper; without lower, of all.
func difference(t *testing.T, lower, upper string) []byte {
	t.Helper()
	var trees changes.Trees
	for dir, f := range map[string]**os.File{lower: &trees.Lower, upper: &trees.Upper} {
		if dir == "" {
			continue
		}
		var err error
		if *f, err = os.Open(dir); err != nil {
			t.Fatal(err)
		}
		defer (*f).Close()
	}
	format, err := pack.FormatOf(ocispec.MediaTypeImageLayer)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := pack.Write(t.Context(), &b, format, trees, nil); err != nil {
		t.Fatalf("make a layer: %v", err)
	}
	return b.Bytes()
}

// whole describes everything below dir: type, mode, owner, time, contents,
// attributes and links.
func whole(t *testing.T, dir string) map[string]string {
	t.Helper()
	all, first, linked := make(map[string]string), make(map[uint64]string), make(map[string]uint64)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		at := time.Unix(st.Mtim.Unix()).UTC().Format("2006-01-02T15:04:05.000000000")
		s := fmt.Sprintf("%o; %d:%d; time %s", st.Mode, st.Uid, st.Gid, at)
		rel, _ := filepath.Rel(dir, path)
		rel = fmt.Sprintf("%q", rel)
		switch d.Type() {
		case 0:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			h := sha256.New()
			_, err = io.Copy(h, f)
			if f.Close(); err != nil {
				return err
			}
			s += fmt.Sprintf("; %d bytes %.8x", st.Size, h.Sum(nil))
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf("; to %q", target)
		case fs.ModeDir:
		default:
			s += fmt.Sprintf("; dev %x", st.Rdev)
		}
		attrs, err := attributesOf(path)
		if err != nil {
			return err
		}
		if s += attrs; !d.IsDir() && st.Nlink > 1 {
			linked[rel] = st.Ino
			if f := first[st.Ino]; f == "" || rel < f {
				first[st.Ino] = rel
			}
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for rel, ino := range linked {
		all[rel] += "; link of " + first[ino]
	}
	return all
}

func attributesOf(path string) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil && !errors.Is(err, syscall.ENOTSUP) {
		return "", err
	}
	var all string
	names := strings.Split(string(b[:max(n, 0)]), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if !layer.Allowed(name) {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			return "", err
		}
		all += fmt.Sprintf("; %s %x", name, v[:n])
	}
	return all, nil
}

func needUmoci(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("needs umoci: make deps installs it")
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func blobPath(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

// umoci extracts layers with umoci, out of an image that is made for it, and
// returns where.
func umoci(t *testing.T, layers [][]byte) string {
	t.Helper()
	layout := t.TempDir()
	put := func(v any, mediaType string) ocispec.Descriptor {
		data, ok := v.([]byte)
		if !ok {
			var err error
			if data, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		path := blobPath(layout, d.Digest)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		manifest.Layers = append(manifest.Layers, put(l, ocispec.MediaTypeImageLayer))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	manifest.Config = put(config, ocispec.MediaTypeImageConfig)
	image := put(manifest, ocispec.MediaTypeImageManifest)
	image.Annotations = map[string]string{ocispec.AnnotationRefName: "test"}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{image}})
	err = errors.Join(err,
		os.WriteFile(filepath.Join(layout, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(layout, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	command(t, "umoci", "unpack", "--image", layout+":test", bundle)
	return filepath.Join(bundle, "rootfs")
}

// layersOf returns the layers of an image in a layout.
func layersOf(t *testing.T, layout, name string) []ocispec.Descriptor {
	t.Helper()
	read := func(path string, into any) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index ocispec.Index
	read(filepath.Join(layout, "index.json"), &index)
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == name {
			var m ocispec.Manifest
			read(blobPath(layout, d.Digest), &m)
			return m.Layers
		}
	}
	t.Fatalf("no image %q in %s", name, layout)
	return nil
}
