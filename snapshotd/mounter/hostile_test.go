package mounter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount"
)

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

// TestCommittedTreesStayAsTheyAre mounts one read-only, and that once more, to be
// written to.
func TestCommittedTreesStayAsTheyAre(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	dir, own := n.place("one", false), n.place("one", true)
	view := mount.Mount{Type: "bind", Source: dir + "/fs", Options: []string{"ro", "rbind"}}
	made := "X-containerd.mkdir.path={{ mount 0 }}/made"
	for _, m := range []mount.Mount{
		{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rw", "rbind"}},
		{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rw", "bind"}},
		{Type: "format/overlay", Options: []string{"lowerdir=" + own + "/fs", "upperdir={{ mount 0 }}", "workdir=" + own + "/work"}},
		{Type: "format/mkdir/bind", Source: "{{ mount 0 }}", Options: []string{made, "ro"}},
	} {
		for _, first := range []mount.Mount{view, {Type: "overlay", Options: []string{"lowerdir=" + dir + "/fs:" + own + "/fs"}}, erofs(n.image("one"))} {
			if _, err := s.In(one).Activate(t.Context(), "n", []mount.Mount{first, m}, activation.Options{Temporary: true}); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("Activate(%v, %v) = %v, want an invalid argument", first, m, err)
			}
		}
	}
	i := activate(t, s, "n", activation.Options{Temporary: true}, view, mount.Mount{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rbind"}})
	if err := os.WriteFile(i.Active[1].MountPoint+"/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a view of a view = %v, want a read-only file system", err)
	}
	deactivate(t, s, "n")
	if got := names(t, dir+"/fs"); got != "" {
		t.Errorf("the tree has %q", got)
	}
	n.clean(t)
}

// TestRacingLinks swaps a directory with a link to another namespace's while it
// is mounted.
func TestRacingLinks(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	own, secret := n.place("one", true), n.place("two", true)
	for path, content := range map[string]string{own + "/fs/dir/name": "own", secret + "/fs/name": "secret"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret+"/fs", own+"/fs/link"); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, own+"/fs/dir", unix.AT_FDCWD, own+"/fs/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	mounted := 0
	for i := range 200 {
		m := mount.Mount{Type: "mkdir/bind", Source: own + "/fs/dir", Options: []string{
			"rw", "rbind", fmt.Sprintf("X-containerd.mkdir.path=%s/fs/dir/made%d", own, i),
		}}
		info, err := s.In(one).Activate(t.Context(), "n", []mount.Mount{m}, activation.Options{Temporary: true})
		if err != nil {
			continue
		}
		mounted++
		if b, err := os.ReadFile(info.System[0].Source + "/name"); err != nil || string(b) != "own" {
			t.Errorf("round %d: mounted %q, %v", i, b, err)
		}
		deactivate(t, s, "n")
	}
	close(stop)
	<-stopped
	if got := names(t, secret+"/fs"); got != "name" {
		t.Errorf("another namespace's tree has %q", got)
	}
	t.Logf("%d of 200 were mounted", mounted)
	n.clean(t)
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
	theirs, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	config := unix.LoopConfig{Fd: uint32(other.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(theirs.Fd()), &config); err != nil {
		t.Skip("the device is taken: ", err)
	}
	deactivate(t, s, "n")
	if len(loopsOf(t, n.dir)) != 1 {
		t.Error("a device of somebody else's was ended")
	}
}
