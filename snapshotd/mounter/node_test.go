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

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation/activationtest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

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
