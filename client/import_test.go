package client_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/namespace"
)

var scope = namespace.Scope{Name: "default"}

// everything is what a namespace has, in words that can be compared.
func everything(t *testing.T, c *client.Client) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for info, err := range c.Content.In(scope).List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all["blob "+info.Digest.String()] = ""
	}
	statuses, err := c.Content.In(scope).ListStatuses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statuses {
		all["ingest "+s.Ref] = ""
	}
	images, err := c.Images.In(scope).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		all["image "+i.Name] = i.Target.Digest.String()
	}
	leases, err := c.Leases.In(scope).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		all["lease "+l.ID] = ""
	}
	snapshots, err := c.Snapshots.In(scope, client.SnapshotterDefault)
	if err != nil {
		t.Fatal(err)
	}
	for info, err := range snapshots.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all["snapshot "+info.Name] = string(info.Kind)
	}
	containers, err := c.Containers.In(scope).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range containers {
		all["container "+k.ID] = ""
	}
	return all
}

func importFrom(t *testing.T, c *client.Client, archive []byte, o client.ImportOptions) ([]image.Image, error) {
	t.Helper()
	return c.In(scope.Name).Import(t.Context(), bytes.NewReader(archive), o)
}

func names(images []image.Image) []string {
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
	}
	return names
}

func TestImportKeepsTheImageAndNothingElse(t *testing.T) {
	c := clienttest.New(t, nil)
	l := clienttest.NewLayout()
	target := l.Image(t, ocispec.ImageConfig{Cmd: []string{"true"}}, "one", strings.Repeat("two ", 50000))
	l.Add("demo:latest", target)
	whole := len(l.Blobs)
	l.Blob("application/octet-stream", strings.Repeat("nobody refers to this ", 50000))
	images, err := importFrom(t, c, l.Archive(t), client.ImportOptions{OwnNames: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"demo:latest"}, names(images)); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	all := everything(t, c)
	if len(all) != whole+1 || all["image demo:latest"] != target.Digest.String() {
		t.Errorf("after the import there are %v", slices.Sorted(maps.Keys(all)))
	}
	for d, body := range l.Blobs {
		if strings.HasPrefix(body, "nobody") {
			continue
		}
		info, err := c.Content.In(scope).Info(t.Context(), d)
		if err != nil || info.Size != int64(len(body)) {
			t.Errorf("blob %s: %+v, %v", d, info, err)
		}
	}
	info, err := c.Content.In(scope).Info(t.Context(), target.Digest)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.In(scope.Name).Resolve(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"containerd.io/gc.ref.content.config": r.Config.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    r.Layers[0].Digest.String(),
		"containerd.io/gc.ref.content.l.1":    r.Layers[1].Digest.String(),
	}
	if diff := cmp.Diff(want, info.Labels); diff != "" {
		t.Errorf("labels of the manifest (-want +got):\n%s", diff)
	}
}

func TestImportTwiceIsFine(t *testing.T) {
	c := clienttest.New(t, nil)
	for range 2 {
		if _, err := importFrom(t, c, clienttest.Demo(t), client.ImportOptions{OwnNames: true}); err != nil {
			t.Fatal(err)
		}
	}
	before := everything(t, c)
	if _, err := importFrom(t, c, clienttest.Demo(t), client.ImportOptions{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	before["image other"] = before["image demo:latest"]
	if diff := cmp.Diff(before, everything(t, c)); diff != "" {
		t.Errorf("after the third import (-want +got):\n%s", diff)
	}
}

func TestImportReadsCompressedArchives(t *testing.T) {
	c := clienttest.New(t, nil)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(clienttest.Demo(t)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	images, err := c.In(scope.Name).Import(t.Context(), iotest.OneByteReader(&b), client.ImportOptions{OwnNames: true})
	if err != nil || len(images) != 1 {
		t.Errorf("Import = %v, %v", images, err)
	}
}

// dockerSave is what docker save wrote before it wrote OCI layouts.
func dockerSave(t *testing.T, tags string) []clienttest.Entry {
	one, two := "layer one", strings.Repeat("layer two ", 20000)
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Cmd: []string{"true"}},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{
			digest.FromString(one), digest.FromString(two), digest.FromString(one),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return []clienttest.Entry{
		{Name: "aa/", Type: tar.TypeDir},
		{Name: "aa/VERSION", Body: "1.0"},
		{Name: "aa/layer.tar", Body: one},
		{Name: "bb/layer.tar", Body: two},
		{Name: "cc/layer.tar", Link: "../aa/layer.tar"},
		{Name: "config.json", Body: string(config)},
		{Name: "manifest.json", Body: `[{"Config":"config.json","RepoTags":` + tags +
			`,"Layers":["aa/layer.tar","bb/layer.tar","cc/layer.tar"]}]`},
		{Name: "repositories", Body: `{}`},
	}
}

func TestImportReadsWhatDockerSaves(t *testing.T) {
	c := clienttest.New(t, nil)
	images, err := importFrom(t, c, clienttest.Tar(t, dockerSave(t, `["a:1","a:2"]`)...), client.ImportOptions{OwnNames: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a:1", "a:2"}, names(images)); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	r, err := c.In(scope.Name).Resolve(t.Context(), images[0].Target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.In(scope.Name).Unpack(t.Context(), r, client.SnapshotterDefault); err != nil {
		t.Error(err)
	}
	if _, err := importFrom(t, c, clienttest.Tar(t, dockerSave(t, `null`)...), client.ImportOptions{Name: "b"}); err != nil {
		t.Errorf("an image without tags: %v", err)
	}
}

// TestImportOfBadArchivesChangesNothing holds what a user of archives from
// elsewhere stands on.
func TestImportOfBadArchivesChangesNothing(t *testing.T) {
	type entries = []clienttest.Entry
	own := client.ImportOptions{OwnNames: true}
	layout := func(t *testing.T, change func(*clienttest.Layout, ocispec.Descriptor)) []byte {
		l := clienttest.NewLayout()
		d := l.Image(t, ocispec.ImageConfig{Cmd: []string{"true"}}, "one", strings.Repeat("two ", 50000))
		l.Add("demo:latest", d)
		change(l, d)
		return l.Archive(t)
	}
	add := func(t *testing.T, e ...clienttest.Entry) []byte {
		l := clienttest.NewLayout()
		l.Add("demo:latest", l.Image(t, ocispec.ImageConfig{}, "one"))
		return clienttest.Tar(t, append(l.Entries(t), e...)...)
	}
	manifest := func(t *testing.T, l *clienttest.Layout, change func(map[string]any)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(l.Blobs[l.Index.Manifests[0].Digest]), &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		l.Index.Manifests = nil
		l.Add("demo:latest", l.JSON(t, ocispec.MediaTypeImageManifest, m))
	}
	for _, c := range []struct {
		name    string
		archive func(t *testing.T) []byte
		o       client.ImportOptions
		kind    error // ErrInvalidArgument unless given
		says    string
	}{
		{name: "empty", archive: func(*testing.T) []byte { return nil }, o: own, says: "empty"},
		{name: "not a tar", archive: func(*testing.T) []byte { return bytes.Repeat([]byte("x"), 5000) }, o: own, says: "cannot be read"},
		{name: "not an image", archive: func(t *testing.T) []byte { return clienttest.Tar(t, clienttest.Entry{Name: "a", Body: "b"}) }, o: own, says: "no image archive"},
		{name: "truncated in a blob", archive: func(t *testing.T) []byte { b := clienttest.Demo(t); return b[:len(b)*2/3] }, o: own, says: "truncated"},
		{name: "truncated compression", archive: func(t *testing.T) []byte {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write(clienttest.Demo(t))
			z.Close()
			return b.Bytes()[:b.Len()/2]
		}, o: own, says: "truncated"},
		{name: "a blob with other bytes", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, _ ocispec.Descriptor) { l.Blobs[digest.FromString("one")] = "eno" })
		}, o: own, says: "has the bytes of"},
		{name: "a large blob with other bytes", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, _ ocispec.Descriptor) {
				l.Blobs[digest.FromString(strings.Repeat("two ", 50000))] = strings.Repeat("owt ", 50000)
			})
		}, o: own, says: "has the bytes of"},
		{name: "a missing layer", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, _ ocispec.Descriptor) { delete(l.Blobs, digest.FromString("one")) })
		}, o: own, says: "does not have it"},
		{name: "a missing manifest", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) { delete(l.Blobs, d.Digest) })
		}, o: own, says: "does not have it"},
		{name: "a wrong size", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) { l.Index.Manifests[0].Size++ })
		}, o: own, says: "bytes"},
		{name: "a path that climbs", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "../etc/passwd", Body: "x"}) }, o: own, says: "climbs"},
		{name: "a path that climbs and comes back", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "blobs/../../x", Body: "x"}) }, o: own, says: "climbs"},
		{name: "an absolute path", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "/etc/passwd", Body: "x"}) }, o: own, says: "relative"},
		{name: "a link that climbs", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "a/b", Link: "../../etc/passwd"}) }, o: own, says: "out of the archive"},
		{name: "a link to an absolute path", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "a", Link: "/etc/passwd"}) }, o: own, says: "out of the archive"},
		{name: "a hard link that climbs", archive: func(t *testing.T) []byte {
			return add(t, clienttest.Entry{Name: "a", Link: "../etc/passwd", Type: tar.TypeLink})
		}, o: own, says: "out of the archive"},
		{name: "a device", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "a", Type: tar.TypeBlock}) }, o: own, says: "neither a file"},
		{name: "a FIFO", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "a", Type: tar.TypeFifo}) }, o: own, says: "neither a file"},
		{name: "an entry twice", archive: func(t *testing.T) []byte {
			return add(t, clienttest.Entry{Name: "a", Body: "1"}, clienttest.Entry{Name: "./a", Body: "2"})
		}, o: own, says: "twice"},
		{name: "a blob that is no digest", archive: func(t *testing.T) []byte { return add(t, clienttest.Entry{Name: "blobs/sha256/x", Body: "x"}) }, o: own, says: "no digest"},
		{name: "a blob of another algorithm", archive: func(t *testing.T) []byte {
			return add(t, clienttest.Entry{Name: "blobs/sha512/" + digest.SHA512.FromString("x").Encoded(), Body: "x"})
		}, o: own, kind: errdefs.ErrNotImplemented, says: "sha512"},
		{name: "an ambiguous manifest", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				manifest(t, l, func(m map[string]any) { m["manifests"] = []any{d} })
			})
		}, o: own, says: "ambiguous"},
		{name: "a manifest that says it is an index", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				manifest(t, l, func(m map[string]any) { m["mediaType"] = ocispec.MediaTypeImageIndex })
			})
		}, o: own, says: "where its descriptor says"},
		{name: "a manifest where its descriptor says index", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Index.Manifests[0].MediaType = ocispec.MediaTypeImageIndex
			})
		}, o: own, says: "where its descriptor says"},
		{name: "a layer's digest that is a path", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				manifest(t, l, func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["digest"] = "sha256:../../x" })
			})
		}, o: own, says: "no digest"},
		{name: "a negative size", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				manifest(t, l, func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = -1 })
			})
		}, o: own, says: "size"},
		{name: "more layers than the config has", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				manifest(t, l, func(m map[string]any) { m["layers"] = m["layers"].([]any)[:1] })
			})
		}, o: own, says: "layers"},
		{name: "a manifest that goes on", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Index.Manifests = nil
				l.Add("demo:latest", l.Blob(d.MediaType, l.Blobs[d.Digest]+"{}"))
			})
		}, o: own, says: "goes on"},
		{name: "a giant manifest", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Index.Manifests = nil
				l.Add("demo:latest", l.Blob(d.MediaType, l.Blobs[d.Digest]+strings.Repeat(" ", 9<<20)))
			})
		}, o: own, says: "at most"},
		{name: "another platform", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Index.Manifests = nil
				inner := l.JSON(t, ocispec.MediaTypeImageIndex, ocispec.Index{
					Versioned: specs.Versioned{SchemaVersion: 2},
					Manifests: []ocispec.Descriptor{{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}},
				})
				l.Add("demo:latest", inner)
			})
		}, o: own, kind: errdefs.ErrNotFound, says: "linux/s390x"},
		{name: "an index of itself, as far as one can say so", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				for range 8 {
					d = l.JSON(t, ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}})
				}
				l.Index.Manifests = nil
				l.Add("demo:latest", d)
			})
		}, o: own, says: "deep"},
		{name: "no name asked for", archive: clientDemo, says: "needs a name"},
		{name: "no name in it", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) { l.Index.Manifests[0].Annotations = nil })
		}, o: own, says: "the archive has none"},
		{name: "a name with a newline", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Index.Manifests[0].Annotations[ocispec.AnnotationRefName] = "demo\nroot"
			})
		}, o: own, says: "no name for an image"},
		{name: "two images of one name", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Add("demo:latest", l.Image(t, ocispec.ImageConfig{}, "other"))
			})
		}, o: own, says: "ambiguous"},
		{name: "two images and one name", archive: func(t *testing.T) []byte {
			return layout(t, func(l *clienttest.Layout, d ocispec.Descriptor) {
				l.Add("other", l.Image(t, ocispec.ImageConfig{}, "other"))
			})
		}, o: client.ImportOptions{Name: "mine"}, says: "2 images"},
		{name: "a layout of the future", archive: func(t *testing.T) []byte {
			return clienttest.Tar(t, entries{{Name: ocispec.ImageLayoutFile, Body: `{"imageLayoutVersion":"9"}`}, {Name: ocispec.ImageIndexFile, Body: `{}`}}...)
		}, o: own, kind: errdefs.ErrNotImplemented, says: "version"},
		{name: "docker's, with a missing layer", archive: func(t *testing.T) []byte {
			return clienttest.Tar(t, dockerSave(t, `["a"]`)[3:]...)
		}, o: own, says: "truncated or not whole"},
		{name: "docker's, with a layer elsewhere", archive: func(t *testing.T) []byte {
			return clienttest.Tar(t, clienttest.Entry{Name: "manifest.json", Body: `[{"Config":"/etc/passwd","RepoTags":["a"],"Layers":["../x"]}]`})
		}, o: own, says: "relative"},
		{name: "docker's, with links in a circle", archive: func(t *testing.T) []byte {
			e := dockerSave(t, `["a"]`)
			e[2] = clienttest.Entry{Name: "aa/layer.tar", Link: "../cc/layer.tar"}
			return clienttest.Tar(t, e...)
		}, o: own, says: "links"},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := clienttest.New(t, nil)
			kind := c.kind
			if kind == nil {
				kind = errdefs.ErrInvalidArgument
			}
			images, err := importFrom(t, node, c.archive(t), c.o)
			if !errors.Is(err, kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Import = %v, %v; want %v that says %q", images, err, kind, c.says)
			}
			if all := everything(t, node); len(all) > 0 {
				t.Errorf("it left %v", slices.Sorted(maps.Keys(all)))
			}
		})
	}
}

func clientDemo(t *testing.T) []byte { return clienttest.Demo(t) }

// TestImportNamesNoImageThatDoesNotUnpack imports an image whose config tells
// lies about a layer, over one that is good.
func TestImportNamesNoImageThatDoesNotUnpack(t *testing.T) {
	c := clienttest.New(t, nil)
	o := client.ImportOptions{Name: "demo:latest", Snapshotter: client.SnapshotterDefault}
	if _, err := importFrom(t, c, clienttest.Demo(t), o); err != nil {
		t.Fatal(err)
	}
	good := everything(t, c)["image demo:latest"]
	l := clienttest.NewLayout()
	first := l.Image(t, ocispec.ImageConfig{}, "one", "two")
	var m ocispec.Manifest
	var img ocispec.Image
	unmarshal(t, l.Blobs[first.Digest], &m)
	unmarshal(t, l.Blobs[m.Config.Digest], &img)
	img.RootFS.DiffIDs[1] = digest.FromString("three")
	m.Config = l.JSON(t, m.Config.MediaType, img)
	l.Add("", l.JSON(t, m.MediaType, m))
	if _, err := importFrom(t, c, l.Archive(t), o); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Import = %v; want a failed precondition", err)
	}
	if got := everything(t, c)["image demo:latest"]; got != good {
		t.Errorf("the name is %s's now; want %s's", got, good)
	}
}

func TestAnArchiveReplacesNoImage(t *testing.T) {
	c := clienttest.New(t, nil)
	if _, err := importFrom(t, c, clienttest.Demo(t), client.ImportOptions{OwnNames: true}); err != nil {
		t.Fatal(err)
	}
	before := everything(t, c)
	l := clienttest.NewLayout()
	other := l.Image(t, ocispec.ImageConfig{Cmd: []string{"evil"}}, "other")
	l.Add("demo:latest", other)
	if _, err := importFrom(t, c, l.Archive(t), client.ImportOptions{OwnNames: true}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("an archive that names its image as one that is here: %v; want already exists", err)
	}
	if diff := cmp.Diff(before, everything(t, c)); diff != "" {
		t.Errorf("it changed (-want +got):\n%s", diff)
	}
	images, err := importFrom(t, c, l.Archive(t), client.ImportOptions{Name: "demo:latest"})
	if err != nil || images[0].Target.Digest != other.Digest {
		t.Errorf("a name that the caller gives replaces: %v, %v", images, err)
	}
}

// TestImportReadsNoMoreThanItMay feeds an archive without end.
func TestImportReadsNoMoreThanItMay(t *testing.T) {
	c := clienttest.New(t, nil)
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		tw := tar.NewWriter(w)
		for {
			if tw.WriteHeader(&tar.Header{Name: "x" + strings.Repeat("/x", 40), Typeflag: tar.TypeDir}) != nil {
				return
			}
		}
	}()
	if _, err := c.In(scope.Name).Import(t.Context(), r, client.ImportOptions{OwnNames: true}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("an archive without end: %v", err)
	}
}

func FuzzImport(f *testing.F) {
	l := clienttest.NewLayout()
	l.Add("demo:latest", l.Image(f, ocispec.ImageConfig{Cmd: []string{"true"}}, "layer"))
	f.Add(l.Archive(f))
	f.Add(clienttest.Tar(f, clienttest.Entry{Name: "manifest.json", Body: `[{"Config":"c","Layers":["l"]}]`}, clienttest.Entry{Name: "c", Body: "{}"}, clienttest.Entry{Name: "l", Body: "x"}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		c := clienttest.New(t, nil)
		images, err := importFrom(t, c, archive, client.ImportOptions{OwnNames: true})
		if err != nil {
			if all := everything(t, c); len(all) > 0 {
				t.Errorf("%v, and it left %v", err, all)
			}
			return
		}
		for _, i := range images {
			if _, err := c.In(scope.Name).Resolve(t.Context(), i.Target); err != nil {
				t.Errorf("it kept image %s, which is not whole: %v", i.Name, err)
			}
		}
	})
}

// A shakyContent dies in the middle of every write, of which it keeps half, and
// after every commit, before it can say so.
type shakyContent struct{ content.Stores }

func (s shakyContent) In(scope namespace.Scope) content.Store {
	return shakyContentIn{s.Stores.In(scope)}
}

type shakyContentIn struct{ content.Store }

func (s shakyContentIn) Writer(ctx context.Context, o content.WriterOptions) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, o)
	if err != nil {
		return nil, err
	}
	return &shakyWriter{Writer: w}, nil
}

type shakyWriter struct {
	content.Writer
	dead bool
}

func (w *shakyWriter) Write(b []byte) (int, error) {
	if len(b) < 1000 {
		return w.Writer.Write(b)
	}
	if w.dead {
		return 0, errdefs.ErrUnavailable
	}
	w.dead = true
	if _, err := w.Writer.Write(b[:len(b)/2]); err != nil {
		return 0, err
	}
	return 0, errors.Join(errdefs.ErrUnavailable, w.Writer.Close())
}

func (w *shakyWriter) Commit(ctx context.Context, size int64, d digest.Digest, labels map[string]string) error {
	if err := w.Writer.Commit(ctx, size, d, labels); err != nil {
		return err
	}
	return errdefs.ErrUnavailable
}

// TestImportGoesOnWhenContentRestarts reads the archive once, as from a pipe.
func TestImportGoesOnWhenContentRestarts(t *testing.T) {
	c := clienttest.New(t, nil)
	c.Content = shakyContent{c.Content}
	images, err := c.In(scope.Name).Import(t.Context(), io.MultiReader(bytes.NewReader(clienttest.Demo(t))), client.ImportOptions{OwnNames: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.In(scope.Name).Resolve(t.Context(), images[0].Target)
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Content.In(scope).Info(t.Context(), r.Manifest.Digest)
	if err != nil || len(info.Labels) != 3 {
		t.Errorf("the manifest's labels are %v, %v", info.Labels, err)
	}
	for _, l := range r.Layers {
		if _, err := content.ReadAll(t.Context(), c.Content.In(scope), l.Digest, 1<<20); err != nil {
			t.Errorf("layer %s: %v", l.Digest, err)
		}
	}
	for name := range everything(t, c) {
		if strings.HasPrefix(name, "ingest ") || strings.HasPrefix(name, "lease ") {
			t.Errorf("it left %s", name)
		}
	}
}

// TestImportTellsHowFarItIs in stages that come one after the other, in each of
// which nothing goes back.
func TestImportTellsHowFarItIs(t *testing.T) {
	c := clienttest.New(t, nil)
	var stages []client.Stage
	var last client.Progress
	_, err := importFrom(t, c, clienttest.Demo(t), client.ImportOptions{
		OwnNames: true, Snapshotter: client.SnapshotterDefault,
		Progress: func(p client.Progress) {
			if p.Stage != last.Stage {
				stages = append(stages, p.Stage)
			} else if p.Done < last.Done {
				t.Errorf("from %+v it went back to %+v", last, p)
			}
			if p.Done < 0 || p.Total > 0 && p.Done > p.Total {
				t.Errorf("it told of %+v", p)
			}
			last = p
		},
	})
	if diff := cmp.Diff([]client.Stage{client.StageSend, client.StageCommit, client.StageUnpack}, stages); err != nil || diff != "" {
		t.Errorf("Import = %v; stages (-want +got):\n%s", err, diff)
	}
}
