package mounter

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/activation/activationtest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/snapshotd/loop"
)

// needRoot skips what mounts, loudly.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("needs erofs-utils: ", err)
	}
}

func TestActivations(t *testing.T) {
	activationtest.Run(t, func(t *testing.T, leases lease.Registry) activationtest.Fixture {
		n := newNode(t)
		f := n.fixture(t, leases)
		t.Cleanup(func() { n.clean(t) })
		return f
	})
}

func TestActivationsAcrossTheWire(t *testing.T) {
	activationtest.Run(t, func(t *testing.T, leases lease.Registry) activationtest.Fixture {
		f := newNode(t).fixture(t, leases)
		conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { activationrpc.Register(r, f.Stores) })
		f.Stores, f.Allows = activationrpc.NewClient(conn), false
		return f
	})
}

var one = namespace.Scope{Name: "one"}

func activate(t testing.TB, s *Store, name string, o activation.Options, mounts ...mount.Mount) activation.Info {
	t.Helper()
	i, err := s.In(one).Activate(context.Background(), name, mounts, o)
	if err != nil {
		t.Fatalf("Activate(%q): %v", name, err)
	}
	return i
}

func deactivate(t testing.TB, s *Store, name string) {
	t.Helper()
	if err := s.In(one).Deactivate(context.Background(), name); err != nil {
		t.Fatalf("Deactivate(%q): %v", name, err)
	}
}

// erofs mounts an image as the snapshotter describes it.
func erofs(image string) mount.Mount {
	return mount.Mount{Type: "erofs", Source: image, Options: []string{"ro", "loop"}}
}

func names(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Errorf("ReadDir: %v", err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// TestWhatIsMounted looks into the mounts, in the shapes that snapshotters use.
func TestWhatIsMounted(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	a, b := n.image("one"), n.image("one")
	active := n.place("one", true)
	tree := filepath.Join(active, "fs")

	i := activate(t, s, "layers", activation.Options{Temporary: true}, erofs(a), erofs(b), mount.Mount{
		Type: "format/mkdir/overlay", Source: "overlay",
		Options: []string{"lowerdir={{ overlay 0 1 }}", "upperdir=" + tree, "workdir=" + active + "/work", "index=off"},
	})
	top := i.System[0].Source
	if err := os.WriteFile(top+"/written", []byte("x"), 0o644); err != nil {
		t.Errorf("write to the overlay: %v", err)
	}
	if got := names(t, top); got != "1 2 written" {
		t.Errorf("the overlay has %q", got)
	}
	if got := names(t, tree); got != "written" {
		t.Errorf("the upper directory has %q", got)
	}
	deactivate(t, s, "layers")

	// A writable image, as a snapshotter with a limit for each snapshot has it.
	rw := []mount.Mount{
		{Type: "mkfs/ext4", Source: active + "/rw.img", Options: []string{"X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=16m", "rw", "loop"}},
		{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{"X-containerd.mkdir.path={{ mount 0 }}/upper:0755:3:4", "rw", "rbind"}},
	}
	for range 2 { // the second time the image is there
		i = activate(t, s, "writable", activation.Options{Temporary: true}, rw...)
		var st unix.Stat_t
		if err := unix.Stat(i.System[0].Source, &st); err != nil || st.Uid != 3 || st.Gid != 4 || st.Mode&0o777 != 0o755 {
			t.Errorf("the directory is %d:%d %#o, %v", st.Uid, st.Gid, st.Mode, err)
		}
		if err := os.WriteFile(i.System[0].Source+"/x", []byte("x"), 0o644); err != nil {
			t.Errorf("write: %v", err)
		}
		deactivate(t, s, "writable")
	}

	// A device of its own, and what is on it.
	i = activate(t, s, "device", activation.Options{Temporary: true},
		mount.Mount{Type: "loop", Source: active + "/rw.img"}, mount.Mount{Type: "format/ext4", Source: "{{ mount 0 }}", Options: []string{"ro"}})
	if got := names(t, i.Active[1].MountPoint+"/upper"); got != "x" {
		t.Errorf("the image has %q", got)
	}
	if len(loopsOf(t, n.dir)) != 1 {
		t.Errorf("loop devices: %q, want one", loopsOf(t, n.dir))
	}
	deactivate(t, s, "device")

	i = activate(t, s, "view", activation.Options{Temporary: true},
		mount.Mount{Type: "bind", Source: filepath.Dir(a) + "/fs", Options: []string{"ro", "rbind", "rprivate", "nosuid"}})
	if err := os.WriteFile(i.System[0].Source+"/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a view = %v, want a read-only file system", err)
	}
	deactivate(t, s, "view")
	n.clean(t)
}

// TestLoopsWhereImagesNeedThem has the kernel refuse files.
func TestLoopsWhereImagesNeedThem(t *testing.T) {
	n := newNode(t)
	image := n.image("one")
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev, err := loop.Attach(t.Context(), f, true, image)
	if err != nil {
		t.Fatal(err)
	}
	m, err := filesystem("erofs", erofsSettings([]*os.File{dev}, (*os.File).Name, []string{"noacl"}), read([]string{"ro"}))
	if err := errors.Join(err, dev.Close()); err != nil {
		t.Fatal(err)
	}
	if len(loopsOf(t, n.dir)) != 1 {
		t.Error("the device ended before its mount")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	n.await(t, func() bool { return len(loopsOf(t, n.dir)) == 0 })
}

// TestInUse keeps an activation busy.
func TestInUse(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	i := activate(t, s, "n", activation.Options{}, erofs(n.image("one")), erofs(n.image("one")))
	f, err := os.Open(i.Active[0].MountPoint)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.In(one).Deactivate(t.Context(), "n"); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Deactivate = %v, want that it is in use", err)
	}
	if _, err := s.In(one).Info(t.Context(), "n"); err != nil {
		t.Errorf("Info of what is in use = %v", err)
	}
	f.Close()
	deactivate(t, s, "n")
	n.clean(t)
}

// TestAsManyAsThereMayBe has 254 images under one overlay, and leaves no
// descriptor open.
func TestAsManyAsThereMayBe(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	image, own := n.image("one"), n.place("one", true)
	mounts := slices.Repeat([]mount.Mount{erofs(image)}, 254)
	mounts = append(mounts, mount.Mount{Type: "format/overlay", Options: []string{
		"lowerdir={{ overlay 253 0 }}", "upperdir=" + own + "/fs", "workdir=" + own + "/work",
	}})
	before := openFiles(t)
	i := activate(t, s, "n", activation.Options{Temporary: true}, mounts...)
	if got := names(t, i.System[0].Source); got != "1" {
		t.Errorf("the overlay has %q", got)
	}
	deactivate(t, s, "n")
	n.await(t, func() bool { return openFiles(t) <= before })
	n.clean(t)
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// await waits for a condition that the kernel brings about by itself.
func (n *node) await(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come about")
		}
	}
}
