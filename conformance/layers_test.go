package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/snapshotd/layer"
)

// differences are the layers of which containerd makes another tree, and why
// ours is meant.
var differences = map[string]string{
	"a whiteout does not hide what comes with it": "a whiteout applies to the layers below only, by the image specification; containerd removes the layer's own file, if it comes first",
	"a whiteout through a link to the canary":     "a whiteout in a directory that is not there makes none",
	"an opaque mark through a link to the canary": "the same",
	"a whiteout of what is not there":             "the same",
	"times far off":                               "the nearest time that the file system can keep, not 1970",
}

// endless are the layers that containerd's code does not finish.
var endless = map[string]string{
	"a tree deeper than a path can be": "it resolves the chain of links anew for each component of each, for hours",
	"a sparse file of an exabyte":      "it writes the zeros until the disk is full",
}

// TestLayers extracts every hostile layer with containerd's code and with ours:
// where both accept it, the trees are the same.
func TestLayers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: owners and devices")
	}
	both := 0
	for _, h := range difftest.Hostiles(t.TempDir()) {
		if endless[h.Name] != "" {
			continue
		}
		if h.MediaType == "" {
			h.MediaType = ocispec.MediaTypeImageLayer
		}
		layers := []ocispec.Descriptor{{MediaType: h.MediaType, Digest: digest.FromBytes(h.Layer), Size: int64(len(h.Layer))}}
		blobs := map[digest.Digest][]byte{layers[0].Digest: h.Layer}
		if h.Below != nil {
			d := digest.FromBytes(h.Below)
			blobs[d] = h.Below
			layers = append([]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(h.Below))}}, layers...)
		}
		ours, theirs := t.TempDir(), t.TempDir()
		var ourErr, theirErr error
		for _, l := range layers {
			open := func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(blobs[l.Digest])), nil
			}
			ourErr = firstError(ourErr, applyOurs(t, l, open, ours))
			theirErr = firstError(theirErr, applyTheirs(t, l, blobs[l.Digest], theirs))
		}
		if ourErr == nil && h.Refused && h.Digest == "" {
			t.Errorf("%s: accepted", h.Name)
		}
		if (ourErr == nil) != (theirErr == nil) {
			t.Logf("%s: ours %.150v, containerd %.150v", h.Name, ourErr, theirErr)
		}
		if ourErr != nil || theirErr != nil {
			continue
		}
		both++
		got, want := treeOf(t, ours), treeOf(t, theirs)
		var differ []string
		for path := range want {
			if got[path] != want[path] {
				differ = append(differ, fmt.Sprintf("%.100q: ours %.100q, containerd's %.100q", path, got[path], want[path]))
			}
		}
		for path := range got {
			if _, ok := want[path]; !ok {
				differ = append(differ, fmt.Sprintf("%.100q: ours %.100q, none of containerd's", path, got[path]))
			}
		}
		switch _, known := differences[h.Name]; {
		case len(differ) > 0 && !known:
			t.Errorf("%s: the trees differ: %.2000v", h.Name, differ)
		case len(differ) == 0 && known:
			t.Errorf("%s: the trees do not differ any more", h.Name)
		}
	}
	t.Logf("both accept %d layers", both)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func applyOurs(t *testing.T, l ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error), dir string) error {
	own, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	_, err = layer.Apply(t.Context(), l, open, layer.Target{Own: own})
	return err
}

func applyTheirs(t *testing.T, l ocispec.Descriptor, data []byte, dir string) error {
	p := diff.NewProcessorChain(l.MediaType, bytes.NewReader(data))
	for p.MediaType() != ocispec.MediaTypeImageLayer {
		var err error
		if p, err = diff.GetProcessor(t.Context(), p, nil); err != nil {
			return err
		}
	}
	defer p.Close()
	if _, err := archive.Apply(t.Context(), dir, p); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, p)
	return err
}

// treeOf describes what is below dir. Times of directories are left out: they
// are of no entry, or of the last that went in.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o %d:%d dev %x", st.Mode, st.Uid, st.Gid, st.Rdev)
		switch d.Type() {
		case 0:
			s += fmt.Sprintf(" links %d size %d mtime %v", st.Nlink, st.Size, st.Mtim)
			if st.Size < 1<<20 {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				s += " " + digest.FromBytes(b).String()
			}
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " to " + target
		}
		rel, _ := filepath.Rel(dir, path)
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Logf("walk: %.200v", err) // a tree too deep for paths
	}
	return all
}
