package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/manager"
	mountproxy "github.com/containerd/containerd/v2/core/mount/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/mount/erofs"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	gantrymount "github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"

	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd"
)

// A bench of mounts has containerd's manager and ours, on the same snapshots.
type mountBench struct {
	t            testing.TB
	dir          string
	store        *snapshotd.Store
	ours, theirs mount.Manager
	ctx          context.Context
	last         int
}

func newMountBench(t testing.TB) *mountBench {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("needs erofs-utils: ", err)
	}
	dir, err := os.MkdirTemp("", "mounts-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range slices.Backward(mountedIn(t, dir)) {
			t.Errorf("left mount %s", p)
			_ = unix.Unmount(p, unix.MNT_DETACH)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b := &mountBench{t: t, dir: dir, ctx: namespaces.WithNamespace(context.Background(), "one")}
	b.serve()

	db, err := bolt.Open(filepath.Join(dir, "theirs.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.theirs, err = manager.NewManager(db, filepath.Join(dir, "theirs"), manager.WithAllowedRoot(filepath.Join(dir, "snapshotd")),
		manager.WithMountHandler("erofs", erofs.NewErofsMountHandler()), manager.WithMountHandler("loop", mount.LoopbackHandler()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return b
}

// serve is snapshotd on a socket, with containerd's client.
func (b *mountBench) serve() {
	quiet := slog.New(slog.DiscardHandler)
	cfg := snapshotd.Default()
	cfg.Root, cfg.State = filepath.Join(b.dir, "snapshotd"), filepath.Join(b.dir, "ours")
	store, err := snapshotd.Open(cfg, snapshotd.Needs{Log: quiet})
	if err != nil {
		b.t.Fatal(err)
	}
	socket := filepath.Join(b.dir, "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		b.t.Fatal(err)
	}
	srv := rpc.NewServer("snapshotd", quiet)
	activationrpc.Register(srv, store.Activations())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(withNamespace), grpc.WithStreamInterceptor(streamWithNamespace))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := errors.Join(<-served, store.Close()); err != nil {
			b.t.Error(err)
		}
	})
	b.store, b.ours = store, mountproxy.NewMountManager(conn)
}

func withNamespace(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(rpc.WithScope(ctx, namespace.Scope{Name: "one"}), method, req, reply, cc, opts...)
}

func streamWithNamespace(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return stream(rpc.WithScope(ctx, namespace.Scope{Name: "one"}), desc, cc, method, opts...)
}

func mountedIn(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			all = append(all, at)
		}
	}
	return all
}

// snapshot makes one and returns its directory.
func (b *mountBench) snapshot(commit bool) string {
	b.t.Helper()
	b.last++
	sn, err := b.store.In(namespace.Scope{Name: "one"}, snapshotd.Overlayfs)
	if err != nil {
		b.t.Fatal(err)
	}
	key := fmt.Sprint("key ", b.last)
	var m []gantrymount.Mount
	if m, err = sn.Prepare(b.ctx, key, "", snapshot.Options{}); err != nil {
		b.t.Fatal(err)
	}
	if commit {
		if err := sn.Commit(b.ctx, key+" done", key, snapshot.Options{}); err != nil {
			b.t.Fatal(err)
		}
	}
	return filepath.Dir(m[0].Source)
}

// layer is a snapshot that is an image, as containerd's snapshotter of images
// describes it.
func (b *mountBench) layer() mount.Mount {
	b.t.Helper()
	dir := b.snapshot(true)
	if err := os.WriteFile(dir+"/fs/"+filepath.Base(dir), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.erofs", dir+"/layer.erofs", dir+"/fs").CombinedOutput(); err != nil {
		b.t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	return mount.Mount{Type: "erofs", Source: dir + "/layer.erofs", Options: []string{"ro", "loop"}}
}

// An answer is what a manager said, without what differs by nature: times, and
// where it mounts.
type answer struct {
	Err    string
	Info   mount.ActivationInfo
	Looked []mount.ActiveMount // by Info; containerd has not kept more of it
	Files  []string            // in the last of the active mounts
}

// ask activates mounts with a manager, looks, and deactivates them.
func (b *mountBench) ask(m mount.Manager, mounts []mount.Mount, opts ...mount.ActivateOpt) (a answer) {
	b.t.Helper()
	info, err := m.Activate(b.ctx, "n", copied(mounts), opts...)
	if a.Err = kind(err); err != nil {
		return a
	}
	if _, err := m.Activate(b.ctx, "n", copied(mounts), opts...); !errdefs.IsAlreadyExists(err) {
		b.t.Errorf("a second Activate: %v", err)
	}
	looked, err := m.Info(b.ctx, "n")
	if err != nil {
		b.t.Errorf("Info: %v", err)
	}
	listed, err := m.List(b.ctx)
	if err != nil || len(listed) != 1 || cmp.Diff(looked, listed[0]) != "" {
		b.t.Errorf("List = %+v, %v, want %+v", listed, err, looked)
	}
	if n := len(info.Active); n > 0 {
		entries, err := os.ReadDir(info.Active[n-1].MountPoint)
		if err != nil && info.Active[n-1].Type != "loop" {
			b.t.Errorf("look into a mount: %v", err)
		}
		for _, e := range entries {
			a.Files = append(a.Files, e.Name())
		}
	}
	var places []string
	for i, m := range info.Active {
		places = append(places, m.MountPoint, fmt.Sprintf("<%d>", i))
		if m.MountedAt == nil || time.Since(*m.MountedAt) > time.Hour {
			b.t.Errorf("mounted at %v", m.MountedAt)
		}
	}
	plain := strings.NewReplacer(places...)
	for _, m := range info.Active {
		m.MountedAt, m.MountPoint = nil, plain.Replace(m.MountPoint)
		m.Mount = replaced(m.Mount, plain)
		a.Info.Active = append(a.Info.Active, m)
	}
	for _, m := range looked.Active {
		a.Looked = append(a.Looked, mount.ActiveMount{Mount: mount.Mount{Type: m.Type}, MountPoint: plain.Replace(m.MountPoint)})
	}
	for _, m := range info.System {
		a.Info.System = append(a.Info.System, replaced(m, plain))
	}
	a.Info.Name, a.Info.Labels = info.Name, info.Labels
	if err := m.Deactivate(b.ctx, "n"); err != nil {
		b.t.Errorf("Deactivate: %v", err)
	}
	if err := m.Deactivate(b.ctx, "n"); !errdefs.IsNotFound(err) {
		b.t.Errorf("a second Deactivate: %v", err)
	}
	if _, err := m.Info(b.ctx, "n"); !errdefs.IsNotFound(err) {
		b.t.Errorf("Info afterwards: %v", err)
	}
	return a
}

// copied is what a manager may write into, as containerd's does.
func copied(mounts []mount.Mount) []mount.Mount {
	own := slices.Clone(mounts)
	for i := range own {
		own[i].Options = slices.Clone(own[i].Options)
	}
	return own
}

func replaced(m mount.Mount, r *strings.Replacer) mount.Mount {
	m.Source, m.Target = r.Replace(m.Source), r.Replace(m.Target)
	var options []string
	for _, o := range m.Options {
		options = append(options, r.Replace(o))
	}
	m.Options = options
	return m
}

// kind is an error as callers decide by it.
func kind(err error) string {
	switch {
	case err == nil:
		return ""
	case errdefs.IsNotImplemented(err):
		return "not implemented"
	case errdefs.IsAlreadyExists(err):
		return "already exists"
	case errdefs.IsNotFound(err):
		return "not found"
	}
	return "refused"
}

// TestMounts asks containerd's manager and ours the same, through containerd's
// own client.
func TestMounts(t *testing.T) {
	b := newMountBench(t)
	l := []mount.Mount{b.layer(), b.layer(), b.layer()}
	active := b.snapshot(false)
	tree := active + "/fs"
	bind := mount.Mount{Type: "bind", Source: tree, Options: []string{"rw", "rbind"}}
	overlay := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"workdir=" + active + "/work", "upperdir=" + tree, "lowerdir=" + filepath.Dir(l[0].Source) + "/fs", "index=off",
	}}
	joined := func(typ string, options ...string) mount.Mount {
		return mount.Mount{Type: typ, Source: "overlay", Options: append([]string{"workdir=" + active + "/work", "upperdir=" + tree}, options...)}
	}
	first := mount.Mount{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}}
	image := mount.Mount{Type: "mkfs/ext4", Source: active + "/rw.img", Options: []string{
		"X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=16777216", "rw", "loop",
	}}
	upper := mount.Mount{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{
		"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rw", "rbind",
	}}
	raw := active + "/raw.img"
	if err := os.WriteFile(raw, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	labels := mount.WithLabels(map[string]string{"containerd.io/gc.bref.container": "c"})
	for name, mounts := range map[string][]mount.Mount{
		"nothing":               nil,
		"bind":                  {bind},
		"overlay":               {overlay},
		"another type":          {{Type: "unheard/of", Source: "x"}},
		"layer":                 {l[0]},
		"two layers":            {l[0], l[1]},
		"one under a bind":      {l[0], first},
		"layers":                {l[0], l[1], l[2], joined("format/mkdir/overlay", "lowerdir={{ overlay 0 2 }}")},
		"layers, turned":        {l[0], l[1], l[2], joined("format/overlay", "lowerdir={{ overlay 2 0 }}")},
		"one layer":             {l[0], joined("format/overlay", "lowerdir={{ mount 0 }}")},
		"devices":               {{Type: "erofs", Source: l[0].Source, Options: []string{"ro"}}, first},
		"device":                {{Type: "loop", Source: raw}, {Type: "format/squashfs", Source: "{{ mount 0 }}", Target: "{{ target 0 }}", Options: []string{"ro", "x={{ source 0 }}"}}},
		"image":                 {image, upper},
		"image and layers":      {image, l[0], l[1], {Type: "format/mkdir/overlay", Source: "overlay", Options: []string{"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755", "upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work", "lowerdir={{ overlay 1 2 }}"}}},
		"image alone":           {image},
		"mkdir":                 {{Type: "mkdir/bind", Source: tree + "/made", Options: []string{"X-containerd.mkdir.path=" + tree + "/made:0755", "rw", "rbind"}}},
		"mkdir elsewhere":       {{Type: "mkdir/bind", Source: tree, Options: []string{"X-containerd.mkdir.path=/elsewhere/made"}}},
		"mkdir of what it is":   {{Type: "mkdir/bind", Source: tree, Options: []string{"X-containerd.mkdir.path=" + tree + "/there:0700", "rbind"}}},
		"mkdir of another mode": {{Type: "mkdir/bind", Source: tree, Options: []string{"X-containerd.mkdir.path=" + tree + "/there:0711"}}},
		"mkdir, malformed":      {{Type: "mkdir/bind", Source: tree, Options: []string{"X-containerd.mkdir.path=" + tree + "/x:0711:1"}}},
		"mkfs without a size":   {{Type: "mkfs/ext4", Source: active + "/other.img"}},
		"a mount too few":       {l[0], {Type: "format/bind", Source: "{{ mount 1 }}"}},
		"a range too far":       {l[0], {Type: "format/overlay", Options: []string{"lowerdir={{ overlay 0 1 }}"}}},
		"half an expression":    {l[0], {Type: "format/bind", Source: "{{ mount 0"}},
		"another expression":    {l[0], {Type: "format/bind", Source: "{{ nothing 0 }}"}},
		"no such file":          {{Type: "erofs", Source: active + "/absent.erofs", Options: []string{"ro"}}},
		"elsewhere":             {{Type: "erofs", Source: "/elsewhere/layer.erofs", Options: []string{"ro"}}, first},
		"behind the first":      {l[0], first, first},
	} {
		for _, temporary := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, temporary %t", name, temporary), func(t *testing.T) {
				if temporary && slices.Contains([]string{"device", "another type", "behind the first", "elsewhere", "mkdir of another mode"}, name) {
					t.Skip("mount(2) would be asked for what there is not, or what is not ours")
				}
				opts := []mount.ActivateOpt{labels}
				if temporary {
					opts = append(opts, mount.WithTemporary)
				}
				if err := os.MkdirAll(tree+"/there", 0o700); err != nil {
					t.Fatal(err)
				}
				b.t = t
				theirs := b.ask(b.theirs, mounts, opts...)
				for _, made := range []string{active + "/rw.img", tree + "/made"} {
					if err := os.RemoveAll(made); err != nil {
						t.Fatal(err)
					}
				}
				ours := b.ask(b.ours, mounts, opts...)
				if name == "elsewhere" {
					// Theirs mounts, or tries to, whatever path a client names.
					theirs.Err = "not implemented"
				}
				if diff := cmp.Diff(theirs, ours); diff != "" {
					t.Errorf("-containerd +gantry:\n%s", diff)
				}
				if left := mountedIn(t, b.dir); len(left) > 0 {
					t.Errorf("still mounted: %q", left)
				}
			})
		}
	}
	if _, err := b.ours.Update(b.ctx, mount.ActivationInfo{Name: "n"}); kind(err) != "not implemented" {
		t.Errorf("Update = %v, want not implemented", err)
	}
}

// TestStockCtrMounts looks into an image with a stock ctr, which asks for a
// temporary activation, and ends it through the public socket.
func TestStockCtrMounts(t *testing.T) {
	s := startSuite(t)
	s.ctr("images", "import", "--local", "--base-name", "example.test/demo", filepath.Join(s.bin, "demo.tar"))
	image := strings.TrimSpace(s.ctr("images", "ls", "-q"))
	conn, err := grpc.NewClient("unix://"+s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mounts := mountproxy.NewMountManager(conn)
	ctx := rpc.WithScope(t.Context(), namespace.Scope{Name: "default"})

	target := filepath.Join(filepath.Dir(s.root), "looking")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, mode := range [][]string{nil, {"--rw"}} {
		s.ctr(append(append([]string{"images", "mount"}, mode...), image, target)...)
		if _, err := os.Stat(filepath.Join(target, "bin")); err != nil {
			t.Errorf("the image has no files: %v", err)
		}
		if err := os.WriteFile(filepath.Join(target, "written"), nil, 0o644); (err == nil) != (len(mode) > 0) {
			t.Errorf("write to the image (%v): %v", mode, err)
		}
		all, err := mounts.List(ctx)
		if err != nil || len(all) != 1 || all[0].Name != target || len(all[0].Active) != 1 {
			t.Errorf("List = %+v, %v", all, err)
		}
		s.ctr("images", "unmount", "--rm", target)
		if err := mounts.Deactivate(ctx, target); err != nil {
			t.Errorf("Deactivate: %v", err)
		}
		if left := mountedIn(t, s.state); len(left) > 0 {
			t.Errorf("still mounted: %q", left)
		}
	}
	out := s.ctr("plugins", "ls")
	for _, want := range []string{"io.containerd.mount-manager.v1", "io.containerd.mount-handler.v1"} {
		if !strings.Contains(out, want) {
			t.Errorf("ctr plugins ls does not list %s:\n%s", want, out)
		}
	}
}
