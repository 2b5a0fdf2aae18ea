package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

// Two layers, by the digests that would be theirs.
var (
	base = digest.FromString("base").String()
	top  = digest.FromString("top").String()
)

func (d *desk) snapshots() snapshot.Store {
	d.t.Helper()
	s, err := d.client.Snapshots.In(namespace.Scope{Name: "default"}, client.SnapshotterDefault)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// stack makes two layers, a snapshot on each, and a view.
func (d *desk) stack() {
	d.t.Helper()
	s, ctx := d.snapshots(), d.t.Context()
	prepare := func(key, parent string, labels map[string]string) error {
		_, err := s.Prepare(ctx, key, parent, snapshot.Options{Labels: labels})
		return err
	}
	for _, err := range []error{
		prepare("1", "", nil), s.Commit(ctx, base, "1", snapshot.Options{Labels: map[string]string{"a": "1"}}),
		prepare("2", base, nil), s.Commit(ctx, top, "2", snapshot.Options{Labels: aLot}),
		prepare("web", top, nil), prepare("evil\x1b[2J\n", base, nil),
		prepare("rooted", "", map[string]string{"containerd.io/gc.root": "1", "containerd.io/gc.bref.container": "old"}),
	} {
		if err != nil {
			d.t.Fatal(err)
		}
	}
	if _, err := s.View(ctx, "look", base, snapshot.Options{}); err != nil {
		d.t.Fatal(err)
	}
}

// withMeter has snapshotd's answer to operators.
func (d *desk) withMeter() {
	d.own = &operator{snapshots: d.client.Snapshots.(snapshot.Meter), Closer: nothing{}}
}

type nothing struct{}

func (nothing) Close() error { return nil }

func TestSnapshotTables(t *testing.T) {
	d := newDesk(t)
	golden(t, "snapshot-ls-empty.txt", d.want("snapshot", "ls"))
	golden(t, "snapshot-usage-empty.txt", d.want("snapshot", "usage"))
	if got := d.want("snapshot", "tree"); got != "" {
		t.Errorf("the tree of nothing is %q", got)
	}
	d.stack()
	golden(t, "snapshot-ls.txt", timeless(d.want("snapshot", "ls")))
	golden(t, "snapshot-ls-full.txt", timeless(d.want("snapshot", "ls", "--full")))
	golden(t, "snapshot-ls-quiet.txt", d.want("snapshot", "ls", "-q", "--filter", "kind==committed"))
	golden(t, "snapshot-tree.txt", d.want("snapshot", "tree"))
	golden(t, "snapshot-tree-one.txt", d.want("snapshot", "tree", top[:20]))
	golden(t, "snapshot-info.txt", timeless(d.want("snapshot", "info", "web", strings.TrimPrefix(top, "sha256:")[:12])))
}

func TestSnapshotUsageSaysWhoKeepsWhat(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	d.want("run", "-d", "--name", "web", "demo:latest", "sleep")
	d.want("stop", "web")
	d.stack()
	d.put("config", map[string]string{"containerd.io/gc.ref.snapshot.overlayfs/x": "look", "containerd.io/gc.ref.snapshot.native": "web"})
	l, err := d.client.Leases.In(namespace.Scope{Name: "default"}).Create(t.Context(), "mine", nil)
	if err != nil {
		t.Fatal(err)
	}
	leased, err := d.client.Snapshots.In(namespace.Scope{Name: "default", Lease: l.ID}, client.SnapshotterDefault)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leased.Prepare(t.Context(), "work", top, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	kept := func() map[string]string {
		var rows []snapshotUsageRow
		if err := json.Unmarshal([]byte(d.want("snapshot", "usage", "-o", "json")), &rows); err != nil {
			t.Fatal(err)
		}
		all := make(map[string]string)
		for _, r := range rows {
			all[r.Key] = strings.Join(r.Kept, ", ")
		}
		return all
	}
	for _, meter := range []bool{false, true} {
		if meter {
			d.withMeter()
		}
		got := kept()
		images := 0
		for _, who := range got {
			if strings.Contains(who, "image demo:latest") {
				images++
			}
		}
		if images != 1 {
			t.Errorf("meter %t: the image keeps %d snapshots: %v", meter, images, got)
		}
		want := map[string]string{
			base: "3 snapshots", top: "2 snapshots", "look": "blob " + brief(digest.FromString("config")),
			"rooted": "container old, label containerd.io/gc.root", "work": "",
		}
		if meter {
			want["work"] = "lease mine"
		}
		for key, who := range want {
			if got[key] != who {
				t.Errorf("meter %t: %s is kept by %q, want %q", meter, key, got[key], who)
			}
		}
		if !slices.ContainsFunc(mapValues(got), func(who string) bool { return strings.Contains(who, "container web") }) {
			t.Errorf("meter %t: the container keeps nothing: %v", meter, got)
		}
	}
	golden(t, "snapshot-usage.txt", d.want("snapshot", "usage", base, "look", "rooted", "work", "evil\x1b[2J\n"))
}

func mapValues(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

func TestSnapshotHelpIsTheGoldenOne(t *testing.T) {
	d := newDesk(t)
	for _, args := range []string{"", "ls", "tree", "info", "usage", "diff", "mount", "rm"} {
		name := strings.TrimSuffix("help-snapshot-"+args, "-") + ".txt"
		golden(t, name, d.want(append([]string{"snapshot"}, append(strings.Fields(args), "--help")...)...))
	}
}

func TestSnapshotJSONHasTheFieldsThatHelpNames(t *testing.T) {
	d := newDesk(t)
	for _, verb := range []string{"ls", "tree", "usage"} {
		if got := d.want("snapshot", verb, "-o", "json"); got != "[]\n" {
			t.Errorf("snapshot %s of nothing prints %q", verb, got)
		}
	}
	d.stack()
	d.client.Diffs = &differ{d: d, layer: layerOf(t, "etc/", "etc/a")}
	for _, args := range [][]string{{"ls"}, {"tree"}, {"info", "web"}, {"usage"}, {"diff", "web"}, {"diff", "-f", d.file("x"), "web"}} {
		var rows []map[string]any
		if err := json.Unmarshal([]byte(d.want(append(append([]string{"snapshot"}, args...), "-o", "json")...)), &rows); err != nil || len(rows) == 0 {
			t.Fatalf("snapshot %v: %v, %v", args, rows, err)
		}
		_, fields, _ := strings.Cut(d.want("snapshot", args[0], "--help"), "Fields with -o json")
		for key := range rows[0] {
			if !strings.Contains(fields, key) {
				t.Errorf("snapshot %v: field %s is not in its help", args, key)
			}
		}
	}
}

// A differ makes always the same layer.
type differ struct {
	d     *desk
	layer []byte
	asked [2][]mount.Mount
	media string
}

func (f *differ) In(scope namespace.Scope) diff.Service { return differIn{f, scope} }

type differIn struct {
	*differ
	scope namespace.Scope
}

func (f differIn) Apply(context.Context, ocispec.Descriptor, []mount.Mount, diff.ApplyOptions) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errdefs.ErrNotImplemented
}

func (f differIn) Diff(ctx context.Context, lower, upper []mount.Mount, o diff.DiffOptions) (ocispec.Descriptor, error) {
	if f.scope.Lease == "" {
		return ocispec.Descriptor{}, fmt.Errorf("no lease: %w", errdefs.ErrInternal)
	}
	f.asked, f.media = [2][]mount.Mount{lower, upper}, o.MediaType
	r, err := f.d.client.In(f.scope.Name).Put(ctx, bytes.NewReader(f.layer), client.PutOptions{Lease: f.scope.Lease})
	return ocispec.Descriptor{MediaType: o.MediaType, Digest: r.Digest, Size: int64(len(f.layer))}, err
}

func layerOf(t *testing.T, names ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 1}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSnapshotDiff(t *testing.T) {
	d := newDesk(t)
	d.stack()
	f := &differ{d: d, layer: layerOf(t, "etc/", "etc/passwd", "etc/.wh.gone", ".wh.top", "a\nb")}
	d.client.Diffs = f
	if got, want := d.want("snapshot", "diff", "web"), "W /etc\nW /etc/passwd\nD /etc/gone\nD /top\nW /a\\u000ab\n"; got != want {
		t.Errorf("it prints %q, want %q", got, want)
	}
	if len(f.asked[0]) == 0 || len(f.asked[1]) == 0 || f.media != ocispec.MediaTypeImageLayer {
		t.Errorf("asked for %v", f)
	}
	d.want("snapshot", "diff", base)
	if f.asked[0] != nil {
		t.Errorf("what stands on nothing differs from %v", f.asked[0])
	}
	d.want("snapshot", "diff", base, "rooted")
	file := d.file("before")
	d.want("snapshot", "diff", "-f", file, "web")
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, f.layer) {
		t.Errorf("the file has %d bytes, %v", len(b), err)
	}
	d.want("snapshot", "diff", "--into-content", "web")
	if got := d.want("content", "info", digest.FromBytes(f.layer).String()); !strings.Contains(got, "containerd.io/gc.root") || f.media != ocispec.MediaTypeImageLayerGzip {
		t.Errorf("the blob is %s, of %s", got, f.media)
	}
	// No view and no lease is left.
	if got := d.want("snapshot", "ls", "-q", "--filter", "kind==view"); got != "look\n" {
		t.Errorf("views are left: %s", got)
	}
	leases, err := d.client.Leases.In(namespace.Scope{Name: "default"}).List(t.Context())
	if err != nil || len(leases) > 0 {
		t.Errorf("leases are left: %v, %v", leases, err)
	}
}

func TestSnapshotRm(t *testing.T) {
	d := newDesk(t)
	d.importDemo()
	d.want("run", "-d", "--name", "web", "demo:latest", "sleep")
	d.want("stop", "web")
	web, err := d.client.Containers.In(namespace.Scope{Name: "default"}).Get(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	layer := strings.Fields(d.want("snapshot", "ls", "-q", "--filter", "kind==committed"))[0]
	d.fail(1, "gantryctl rm web", "snapshot", "rm", web.SnapshotKey)
	d.fail(1, "--tree", "snapshot", "rm", layer)
	d.fail(1, "container web's", "snapshot", "rm", "--tree", layer)
	if got := d.want("snapshot", "rm", "--tree", "--force", layer); !strings.HasSuffix(got, layer+"\n") || !strings.Contains(got, web.SnapshotKey) {
		t.Errorf("it prints %q", got)
	}
	d.stack()
	out, errs, code := d.ctl("snapshot", "rm", "web", "none", "look")
	if code != 1 || out != "web\nlook\n" || !strings.Contains(errs, "snapshot ls") && !strings.Contains(errs, "lists what there is") {
		t.Errorf("rm = %d, %q, %q", code, out, errs)
	}
}

func TestSnapshotMistakesAreOneLineThatSaysWhatToDo(t *testing.T) {
	d := newDesk(t)
	d.stack()
	for _, verb := range []string{"info", "rm", "diff"} {
		d.fail(1, "gantryctl -n default snapshot --snapshotter overlayfs ls", "snapshot", verb, "none")
		d.fail(1, "gantryctl -n default snapshot --snapshotter overlayfs ls", "snapshot", verb, strings.Repeat("0", 12))
		d.fail(2, "gantryctl snapshot "+verb+" --help", "snapshot", verb)
	}
	d.fail(1, "ctr plugins ls", "snapshot", "--snapshotter", "none", "ls")
	d.fail(1, "filter", "snapshot", "ls", "--filter", "name==")
	d.fail(1, "makes no layers", "snapshot", "diff", "web")
	d.fail(2, "--into-content", "snapshot", "diff", "-f", "x", "--into-content", "web")
	d.fail(2, "gantryctl snapshot mount --help", "snapshot", "mount", "web")
	d.fail(1, "mount web", "snapshot", "mount", "web", t.TempDir())
	d.fail(1, "mount "+base, "snapshot", "mount", base, t.TempDir())
	d.fail(2, "gantryctl snapshot --help", "snapshot", "nonsense")
	if got := d.want("snapshot", "ls", "-q", "--filter", "kind==view"); got != "look\n" {
		t.Errorf("mistakes left %s", got)
	}
}

func TestSnapshotKeysAreCompleted(t *testing.T) {
	d := newDesk(t)
	d.stack()
	for word, want := range map[string]string{"w": "web", "sha256:": top, "": "look"} {
		// The shell's directive is said apart.
		if got, _, _ := d.ctl("__complete", "snapshot", "info", word); !strings.Contains(got, want) || strings.Contains(got, "evil") {
			t.Errorf("%q is completed to %s, want %s among them", word, got, want)
		}
	}
	if got, _, _ := d.ctl("__complete", "snapshot", "mount", "web", ""); strings.Contains(got, "look") {
		t.Errorf("a directory is completed to %s", got)
	}
}
