package mounter

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/activation/activationrpc"
	"github.com/gantryd/gantry/services/activation/activationtest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc/rpctest"
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

// A node is a directory with snapshots, records and mounts in it.
type node struct {
	t      testing.TB
	dir    string
	leases lease.Registry

	last   int
	owners map[string]owner // of the directories of snapshots
}

type owner struct {
	ns    string
	write bool
}

func newNode(t testing.TB) *node {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "mounter-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweepAway(t, dir) })
	n := &node{t: t, dir: dir, owners: make(map[string]owner)}
	if err := os.MkdirAll(n.root(), 0o700); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) root() string { return filepath.Join(n.dir, "root") }

// mounts is where activations are.
func (n *node) mounts() string { return filepath.Join(n.dir, "mounts") }

// sweepAway leaves no mount and no loop device of a test behind.
func sweepAway(t testing.TB, dir string) {
	for _, p := range slices.Backward(mountsBelow(t, dir)) {
		unix.Unmount(p, unix.MNT_DETACH)
	}
	for path := range loopsOf(t, dir) {
		if f, err := os.Open(path); err == nil {
			unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
			f.Close()
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Errorf("RemoveAll: %v", err)
	}
}

// mountsBelow are the places below dir where something is mounted.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
			all = append(all, f[4])
		}
	}
	return all
}

// loopsOf are the loop devices of files below dir.
func loopsOf(t testing.TB, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(b), dir+"/") {
			all["/dev/"+strings.Split(f, "/")[3]] = strings.TrimSpace(string(b))
		}
	}
	return all
}

// place makes a snapshot's directory.
func (n *node) place(ns string, write bool) string {
	n.t.Helper()
	n.last++
	dir := filepath.Join(n.root(), strconv.Itoa(n.last))
	for _, d := range []string{dir, dir + "/fs", dir + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	n.owners[filepath.Base(dir)] = owner{ns, write}
	return dir
}

// image makes an image of EROFS with a file in it that is called like its
// snapshot.
func (n *node) image(ns string) string {
	n.t.Helper()
	dir := n.place(ns, false)
	tree := filepath.Join(n.dir, "tree")
	if err := errors.Join(os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, filepath.Base(dir)), nil, 0o644)); err != nil {
		n.t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.erofs", dir+"/layer.erofs", tree).CombinedOutput(); err != nil {
		n.t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	if err := os.RemoveAll(tree); err != nil {
		n.t.Fatal(err)
	}
	return dir + "/layer.erofs"
}

// Place implements Places.
func (n *node) Place(ns, path string) (Place, error) {
	rel, ok := strings.CutPrefix(path, n.root()+"/")
	if !ok {
		return Place{}, errdefs.ErrNotImplemented
	}
	name, rest, _ := strings.Cut(rel, "/")
	o, ok := n.owners[name]
	if !ok || o.ns != ns {
		return Place{}, errdefs.ErrInvalidArgument
	}
	dir, err := os.Open(filepath.Join(n.root(), name))
	return Place{Dir: dir, Rest: rest, Write: o.write, Image: !strings.Contains(rest, "/") && rest != "" && rest != "fs"}, err
}

// Lookup implements lease.Registry, for none.
func (n *node) Lookup(context.Context, namespace.Scope) (lease.Ref, error) {
	return lease.Ref{ID: "held", Generation: 1}, nil
}

// Join and Leave implement Members.
func (n *node) Join(tx *kv.Tx, ns string, l lease.Ref, r lease.Resource) error {
	if l.ID == "" {
		return nil
	}
	return tx.Put(kv.Key("member", ns, l.ID, r.Type, r.ID), nil)
}

func (n *node) Leave(tx *kv.Tx, ns, id string, r lease.Resource) error {
	return tx.Delete(kv.Key("member", ns, id, r.Type, r.ID))
}

// open opens the database and the store, as a process does that starts. The
// process ends with close.
func (n *node) open(k kernel) (s *Store, shut func()) {
	n.t.Helper()
	db, err := kv.Open(kv.Options{Dir: filepath.Join(n.dir, "db"), Owner: "test", Schema: 1})
	if err != nil {
		n.t.Fatalf("kv.Open: %v", err)
	}
	return n.openOn(k, db, func() error { return db.Close() })
}

func (n *node) openOn(k kernel, records Records, closeDB func() error) (s *Store, shut func()) {
	n.t.Helper()
	var leases lease.Registry = n
	if n.leases != nil {
		leases = n.leases
	}
	s, err := open(n.mounts(), Needs{
		Records: records, Leases: leases, Members: n, Places: n,
		Log: slog.New(slog.NewTextHandler(n.t.Output(), nil)),
	}, k)
	if errors.Is(err, errKilled) {
		return nil, func() {
			if err := closeDB(); err != nil {
				n.t.Errorf("close: %v", err)
			}
		}
	}
	if err != nil {
		n.t.Fatalf("open: %v", errors.Join(err, closeDB()))
	}
	return s, func() {
		if err := errors.Join(s.Close(), closeDB()); err != nil {
			n.t.Errorf("close: %v", err)
		}
	}
}

// start is open for the length of the test.
func (n *node) start(t testing.TB) *Store {
	t.Helper()
	s, shut := n.open(linux{})
	t.Cleanup(shut)
	return s
}

// clean expects nothing to be mounted or attached, and no directory left.
func (n *node) clean(t testing.TB) {
	t.Helper()
	if m := mountsBelow(t, n.dir); len(m) > 0 {
		t.Errorf("still mounted: %q", m)
	}
	if l := loopsOf(t, n.dir); len(l) > 0 {
		t.Errorf("still attached: %q", l)
	}
	entries, err := os.ReadDir(n.mounts())
	if err != nil || len(entries) > 0 {
		t.Errorf("directories of mounts: %v, %v", entries, err)
	}
}

func (n *node) fixture(t *testing.T, leases lease.Registry) activationtest.Fixture {
	n.leases = leases
	return activationtest.Fixture{
		Stores: n.start(t), Allows: true,
		Image:     func(_ *testing.T, ns string) string { return n.image(ns) },
		Active:    func(_ *testing.T, ns string) string { return n.place(ns, true) },
		Committed: func(_ *testing.T, ns string) string { return n.place(ns, false) },
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
	dev, err := attach(t.Context(), f, true, image)
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

// TestLinksAreNotFollowed puts links where directories, images and parents were.
func TestLinksAreNotFollowed(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	secret := n.place("two", true)
	own := n.place("one", true)
	image := n.image("two")
	for link, to := range map[string]string{
		"tree": secret + "/fs", "layer": image, "up": "..", "abs": "/", "proc": "/proc/self/root", "inside": "fs",
	} {
		if err := errors.Join(os.Symlink(to, own+"/"+link), os.Symlink(to, own+"/fs/"+link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(own+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	bind := func(p string) mount.Mount {
		return mount.Mount{Type: "bind", Source: own + p, Options: []string{"ro"}}
	}
	for _, m := range []mount.Mount{
		bind("/tree"), bind("/fs/tree"), bind("/fs/up"), bind("/fs/up/up"), bind("/fs/abs/etc"), bind("/fs/proc/etc"), bind("/inside"), bind("/absent"),
		erofs(own + "/layer"), erofs(own + "/fs/layer"), erofs(own + "/fifo"), erofs(own + "/fs"), erofs(own), erofs(own + "/absent"),
		{Type: "erofs", Source: n.image("one"), Options: []string{"device=" + own + "/layer"}},
		{Type: "ext4", Source: own + "/layer", Options: []string{"ro", "loop"}},
		{Type: "loop", Source: own + "/fs/abs/dev/null", Options: []string{"ro"}},
		{Type: "overlay", Options: []string{"lowerdir=" + own + "/fs/tree:" + own + "/fs"}},
		{Type: "overlay", Options: []string{"lowerdir=" + own + "/fs", "upperdir=" + own + "/tree", "workdir=" + own + "/work"}},
		{Type: "mkdir/bind", Source: own + "/fs", Options: []string{"X-containerd.mkdir.path=" + own + "/fs/tree/made"}},
		{Type: "mkdir/bind", Source: own + "/fs", Options: []string{"X-containerd.mkdir.path=" + own + "/fs/abs"}},
		{Type: "mkfs/ext4", Source: own + "/tree/made.img", Options: []string{"X-containerd.mkfs.size=16m", "loop"}},
		{Type: "mkfs/ext4", Source: own + "/fs/made.img", Options: []string{"X-containerd.mkfs.size=16m", "loop"}},
	} {
		if i, err := s.In(one).Activate(t.Context(), "n", []mount.Mount{m}, activation.Options{Temporary: true}); err == nil {
			t.Errorf("Activate(%v) = %+v, want an error", m, i)
			deactivate(t, s, "n")
		}
		n.clean(t)
	}
	if got := names(t, secret+"/fs"); got != "" {
		t.Errorf("something was made elsewhere: %q", got)
	}
}

// TestOtherMountsAreOutOfReach names what other activations mounted.
func TestOtherMountsAreOutOfReach(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	p := activate(t, s, "first", activation.Options{}, erofs(n.image("one"))).Active[0].MountPoint
	for _, m := range []mount.Mount{
		{Type: "bind", Source: p, Options: []string{"ro"}},
		{Type: "format/bind", Source: "{{ mount 0 }}/../../1/0", Options: []string{"ro"}},
		{Type: "format/bind", Source: "{{ mount 0 }}/..", Options: []string{"ro"}},
		{Type: "format/bind", Source: filepath.Dir(filepath.Dir(p)) + "/2/1", Options: []string{"ro"}},
	} {
		if _, err := s.In(one).Activate(t.Context(), "n", []mount.Mount{erofs(n.image("one")), m}, activation.Options{Temporary: true}); err == nil {
			t.Errorf("Activate(%v) succeeds", m)
			deactivate(t, s, "n")
		}
	}
	if got := mountsBelow(t, n.dir); len(got) != 1 {
		t.Errorf("mounts: %q, want one", got)
	}
	deactivate(t, s, "first")
}

// TestSomebodyElsesLoopDevice has an administrator end our device and make
// another of the same number.
func TestSomebodyElsesLoopDevice(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	i := activate(t, s, "n", activation.Options{}, mount.Mount{Type: "loop", Source: n.image("one"), Options: []string{"ro"}})
	path, err := os.Readlink(i.Active[0].MountPoint)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Fatal(err)
	}
	dev.Close()
	n.await(t, func() bool { return len(loopsOf(t, n.dir)) == 0 })
	other, err := os.Open(n.image("one"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	theirs, err := configure(path, other, true, "theirs")
	if err != nil {
		t.Skip("the device is taken: ", err)
	}
	defer theirs.Close()
	deactivate(t, s, "n")
	if len(loopsOf(t, n.dir)) != 1 {
		t.Error("a device of somebody else's was ended")
	}
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
