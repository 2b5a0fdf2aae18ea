package mounter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/mount"
)

// A cutter ends the process before the cutAt-th change, of the kernel or of the
// records: nothing is changed from then on.
type cutter struct {
	kernel
	Records
	cutAt, changes int
}

var errKilled = errors.New("killed")

func (c *cutter) change() error {
	if c.changes++; c.changes >= c.cutAt {
		return errKilled
	}
	return nil
}

func (c *cutter) Update(ctx context.Context, fn func(tx *kv.Tx) error) error {
	if err := c.change(); err != nil {
		return err
	}
	return c.Records.Update(ctx, fn)
}

func (c *cutter) Release(ctx context.Context, fn func(tx *kv.Tx) error) error {
	if err := c.change(); err != nil {
		return err
	}
	return c.Records.Release(ctx, fn)
}

func (c *cutter) Mkdir(path string) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Mkdir(path) }))
}

func (c *cutter) Attach(m *os.File, path string) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Attach(m, path) }))
}

func (c *cutter) Link(device, path string) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Link(device, path) }))
}

func (c *cutter) Keep(device *os.File) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Keep(device) }))
}

func (c *cutter) MakeDir(parent *os.File, name string, d activation.Dir) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.MakeDir(parent, name, d) }))
}

func (c *cutter) MakeImage(ctx context.Context, parent *os.File, name string, i activation.Image) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.MakeImage(ctx, parent, name, i) }))
}

func (c *cutter) Unmount(path string) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Unmount(path) }))
}

func (c *cutter) Free(device, tag string) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Free(device, tag) }))
}

func (c *cutter) Remove(path string) error {
	return errors.Join(c.change(), c.unless(func() error { return c.kernel.Remove(path) }))
}

// unless does what a process that was killed does not.
func (c *cutter) unless(do func() error) error {
	if c.changes >= c.cutAt {
		return nil
	}
	return do()
}

// cut opens the store as a process that ends before its cutAt-th change; nil if
// that is while it opens.
func (n *node) cut(cutAt int) (s *Store, c *cutter, shut func()) {
	n.t.Helper()
	db, err := kv.Open(kv.Options{Dir: filepath.Join(n.dir, "db"), Owner: "test", Schema: 1})
	if err != nil {
		n.t.Fatalf("kv.Open: %v", err)
	}
	c = &cutter{kernel: linux{}, Records: db, cutAt: cutAt}
	s, shut = n.openOn(c, c, db.Close)
	return s, c, shut
}

// many is an activation with every kind of mount that there is.
func (n *node) many() []mount.Mount {
	dir := n.place("one", true)
	return []mount.Mount{
		erofs(n.image("one")),
		{Type: "loop", Source: n.image("one"), Options: []string{"ro"}},
		{Type: "mkfs/ext4", Source: dir + "/rw.img", Options: []string{"X-containerd.mkfs.size=8m", "loop"}},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path={{ mount 2 }}/upper:0755", "X-containerd.mkdir.path={{ mount 2 }}/work:0755",
			"upperdir={{ mount 2 }}/upper", "workdir={{ mount 2 }}/work", "lowerdir={{ mount 0 }}",
		}},
	}
}

// TestKilled ends the process before the first change that an activation or its
// end makes, then before the second, and so on until it was done. After each, a
// new process finds all of it or nothing, and can go on.
func TestKilled(t *testing.T) {
	n := newNode(t)
	mounts := n.many()
	temporary := activation.Options{Temporary: true}
	for _, ends := range []bool{false, true} {
		for cutAt, done := 1, false; !done; cutAt++ {
			if ends {
				s, shut := n.open(linux{})
				activate(t, s, "n", temporary, mounts...)
				shut()
			}
			s, c, shut := n.cut(cutAt)
			var err error
			if ends {
				err = s.In(one).Deactivate(t.Context(), "n")
			} else {
				_, err = s.In(one).Activate(t.Context(), "n", mounts, temporary)
			}
			done = c.changes < c.cutAt
			shut()
			if (err == nil) != done {
				t.Fatalf("cut %d (ends %t): %v after %d changes", cutAt, ends, err, c.changes)
			}

			s, shut = n.open(linux{})
			if err := s.empty(t.Context()); err != nil {
				t.Errorf("cut %d (ends %t): empty: %v", cutAt, ends, err)
			}
			i, err := s.In(one).Info(t.Context(), "n")
			switch whole := err == nil; {
			case whole && done && !ends, whole && ends && cutAt == 1:
				if got := mountsBelow(t, n.dir); len(got) != 3 || len(i.Active) != 4 {
					t.Errorf("cut %d (ends %t): mounts %q of %+v", cutAt, ends, got, i)
				}
				deactivate(t, s, "n")
			case whole || !errors.Is(err, errdefs.ErrNotFound):
				t.Errorf("cut %d (ends %t): Info = %+v, %v", cutAt, ends, i, err)
			case !ends && done:
				t.Errorf("cut %d: an activation that was acknowledged is gone", cutAt)
			}
			n.clean(t)
			shut()
			if t.Failed() {
				return
			}
		}
	}
}

// TestKilledWhileItStarts is the same for the start that follows, and for what
// it undoes.
func TestKilledWhileItStarts(t *testing.T) {
	n := newNode(t)
	mounts := n.many()
	for cutAt, done := 1, false; !done; cutAt++ {
		s, _, shut := n.cut(8)
		if _, err := s.In(one).Activate(t.Context(), "n", mounts, activation.Options{Temporary: true}); err == nil {
			t.Fatal("Activate went on after the process was killed")
		}
		shut()
		s, c, shut := n.cut(cutAt)
		if s != nil {
			err := s.empty(t.Context())
			if done = c.changes < c.cutAt; (err == nil) != done {
				t.Fatalf("cut %d: empty: %v", cutAt, err)
			}
		}
		shut()
		s, shut = n.open(linux{})
		if err := s.empty(t.Context()); err != nil {
			t.Errorf("cut %d: empty: %v", cutAt, err)
		}
		n.clean(t)
		shut()
	}
}

// TestRestartKnowsWhatIsMounted starts again while something is active.
func TestRestartKnowsWhatIsMounted(t *testing.T) {
	n := newNode(t)
	s, shut := n.open(linux{})
	want := activate(t, s, "n", activation.Options{Labels: map[string]string{"l": "v"}}, n.many()...)
	before := mountsBelow(t, n.dir)
	shut()
	s = n.start(t)
	if err := s.empty(t.Context()); err != nil {
		t.Errorf("empty: %v", err)
	}
	if after := mountsBelow(t, n.dir); !slices.Equal(before, after) || len(before) == 0 {
		t.Errorf("mounts %q after a restart, %q before", after, before)
	}
	got, err := s.In(one).Info(t.Context(), "n")
	if err != nil || len(got.Active) != len(want.Active) || got.Labels["l"] != "v" || len(got.System) != 1 {
		t.Errorf("Info = %+v, %v, want %+v", got, err, want)
	}
	if _, err := s.In(one).Activate(t.Context(), "n", n.many(), activation.Options{}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Activate = %v, want already exists", err)
	}
	deactivate(t, s, "n")
	n.clean(t)
}

// TestAnotherBoot starts where nothing is mounted any more, and the loop devices
// are other people's.
func TestAnotherBoot(t *testing.T) {
	n := newNode(t)
	s, shut := n.open(linux{})
	s.boot = "another"
	activate(t, s, "n", activation.Options{}, n.many()...)
	shut()
	s = n.start(t)
	if i, err := s.In(one).Info(t.Context(), "n"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Info of another boot = %+v, %v, want not found", i, err)
	}
	if err := s.empty(t.Context()); err != nil {
		t.Errorf("empty: %v", err)
	}
	activate(t, s, "n", activation.Options{}, n.many()...)
	deactivate(t, s, "n")
	n.clean(t)
}

// TestLostRecords starts on records from before an activation.
func TestLostRecords(t *testing.T) {
	n := newNode(t)
	s, shut := n.open(linux{})
	activate(t, s, "n", activation.Options{}, n.many()...)
	shut()
	if err := os.RemoveAll(filepath.Join(n.dir, "db")); err != nil {
		t.Fatal(err)
	}
	s = n.start(t)
	i := activate(t, s, "n", activation.Options{}, n.many()...)
	if err := s.empty(t.Context()); err != nil {
		t.Errorf("empty: %v", err)
	}
	if got := mountsBelow(t, n.dir); len(got) != len(i.Active)-1 {
		t.Errorf("mounts %q, want those of %+v", got, i)
	}
	deactivate(t, s, "n")
	n.clean(t)
}

// TestDrop removes an activation as the collector of garbage does.
func TestDrop(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	i := activate(t, s, "n", activation.Options{Labels: map[string]string{"containerd.io/gc.bref.container": "c"}}, n.many()...)
	f, err := os.Open(i.Active[0].MountPoint)
	if err != nil {
		t.Fatal(err)
	}
	drop := func() {
		t.Helper()
		if err := s.needs.Records.Release(t.Context(), func(tx *kv.Tx) error {
			for key, value := range tx.Scan(kv.Key(Rows, ""), nil) {
				o, err := Object(key, value)
				if err != nil || o.Root || o.ID != "n" || o.Namespace != "one" || len(o.Backs) != 1 {
					t.Errorf("Object = %+v, %v", o, err)
				}
			}
			return s.Drop(tx, "one", "n")
		}); err != nil {
			t.Errorf("Drop: %v", err)
		}
	}
	drop()
	drop() // it is not there
	if _, err := s.In(one).Info(t.Context(), "n"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Info = %v, want not found", err)
	}
	if err := s.empty(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("empty of what is in use = %v", err)
	}
	f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Collect(ctx) }()
	n.await(t, func() bool { return len(mountsBelow(t, n.dir)) == 0 && len(loopsOf(t, n.dir)) == 0 })
	n.await(t, func() bool { return names(t, n.mounts()) == "" })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Collect: %v", err)
	}
	n.clean(t)
}

// TestTwoProcesses has one directory of mounts for two.
func TestTwoProcesses(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	if _, err := open(n.mounts(), s.needs, linux{}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("open of a directory in use = %v, want a failed precondition", err)
	}
}
