package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// attachTest mounts what a snapshot says, nowhere, as gantryctl does.
func attachTest(t *testing.T, m []mount.Mount) *os.File {
	t.Helper()
	var f *os.File
	var err error
	if m[0].Type == "overlay" {
		var o kernel.Overlay
		if o, err = kernel.OverlayOf(m[0]); err == nil {
			f, err = kernel.New().Overlay(o)
		}
	} else {
		f, err = kernel.Attach(m[0], false)
	}
	if err != nil {
		t.Fatalf("mount %v: %v", m, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func fileOwner(t *testing.T, dir *os.File, name string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		t.Fatalf("stat %q: %v", name, err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestSnapshotsWithTheIDsOfAContainer mounts every kind of snapshot with ids: the
// files of layers have them, while on disk nobody's files change.
func TestSnapshotsWithTheIDsOfAContainer(t *testing.T) {
	s := openBlobs(t, nil)
	sn := in(t, s, one)
	if !inOf(t, s, one, Overlayfs).d.Traits().RemapIDs {
		t.Skip("the kernel maps no ids")
	}
	o := snapshot.Options{Labels: map[string]string{snapshot.LabelUIDMapping: "0:100000:65536", snapshot.LabelGIDMapping: "0:200000:65536"}}
	for i, parent := range []string{"", "base"} {
		m := prepare(t, sn, "making", parent)
		dir := m[0].Source
		if i > 0 {
			dir = s.fs(2)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, fmt.Sprint("file", i)), i, i); err != nil {
			t.Fatal(err)
		}
		commitTo(t, sn, []string{"base", "second"}[i], "making", "")
	}
	for _, parent := range []string{"", "base", "second"} {
		for kind, make := range map[string]func(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error){
			"active on ": sn.Prepare, "view of ": sn.View,
		} {
			m, err := make(t.Context(), kind+parent, parent, o)
			if err != nil {
				t.Fatalf("%s%s: %v", kind, parent, err)
			}
			f := attachTest(t, m)
			if got := fileOwner(t, f, ""); got != "100000:200000" {
				t.Errorf("%s%q: the root belongs to %s", kind, parent, got)
			}
			if parent == "second" {
				if got := fileOwner(t, f, "file1"); got != "100001:200001" {
					t.Errorf("%s%q: a file of user 1 belongs to %s", kind, parent, got)
				}
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(s.fs(2), "file1"), &st); err != nil || st.Uid != 1 {
		t.Errorf("on disk the file belongs to %d, %v", st.Uid, err)
	}
	// What was given out once is the same after a change of the daemon.
	m, err := sn.Mounts(t.Context(), "active on second")
	if err != nil || !slices.Contains(m[0].Options, "uidmap=0:100000:65536") {
		t.Errorf("Mounts: %v, %v", m, err)
	}
}

// TestNoIDsWhereTheKernelHasNone is a kernel before 5.19: labels are kept and
// mean nothing, and clients are told.
func TestNoIDsWhereTheKernelHasNone(t *testing.T) {
	cfg := configOf(t, Overlayfs)
	cfg.Overlayfs.SlowChown = true
	s := openOn(t, cfg, testNeeds(t), unmapped{kernel.New()})
	sn := in(t, s, one)
	m, err := sn.Prepare(t.Context(), "key", "", snapshot.Options{Labels: map[string]string{snapshot.LabelUIDMapping: "0:5:1", snapshot.LabelGIDMapping: "0:5:1"}})
	if err != nil || strings.Contains(fmt.Sprint(m), "uidmap") {
		t.Errorf("Prepare: %v, %v", m, err)
	}
	for _, p := range s.Plugins() {
		if p.ID == Overlayfs && (slices.Contains(p.Capabilities, "remap-ids") || slices.Contains(p.Capabilities, "only-remap-ids")) {
			t.Errorf("capabilities %q", p.Capabilities)
		}
	}
}

// unmapped is a kernel that maps no ids.
type unmapped struct{ kernel.Kernel }

func (u unmapped) Overlay(o kernel.Overlay) (*os.File, error) {
	if !o.IDs.IsZero() {
		return nil, errors.ErrUnsupported
	}
	return u.Kernel.Overlay(o)
}

// TestVolatileOverlays are mounted again and again, but not after the machine was
// started anew.
func TestVolatileOverlays(t *testing.T) {
	cfg := configOf(t, Overlayfs)
	cfg.Overlayfs.Volatile, cfg.Overlayfs.Xino = true, "off"
	for range 2 {
		s, err := open(cfg, testNeeds(t), driver.Files{}, kernel.New())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openTest(t, cfg, testNeeds(t))
	sn := in(t, s, one)
	prepare(t, sn, "making", "")
	commitTo(t, sn, "base", "making", "")
	for i := range 3 {
		m := prepareOrMounts(t, sn, i)
		if !slices.Contains(m[0].Options, "volatile") || !slices.Contains(m[0].Options, "xino=off") {
			t.Fatalf("options %q", m[0].Options)
		}
		attachTest(t, m).Close()
	}
	boot := filepath.Join(s.path(2), "boot")
	if err := os.WriteFile(boot, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Mounts(t.Context(), "key"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Mounts in another boot: %v", err)
	}
	if err := sn.Commit(t.Context(), "lost", "key", snapshot.Options{}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Commit in another boot: %v", err)
	}
	if err := sn.Remove(t.Context(), "key"); err != nil {
		t.Errorf("Remove in another boot: %v", err)
	}
	prepare(t, sn, "next", "base")
	commitTo(t, sn, "second", "next", "")
	v, err := sn.View(t.Context(), "view", "second", snapshot.Options{})
	if err != nil || slices.Contains(v[0].Options, "volatile") {
		t.Errorf("View: %v, %v", v, err)
	}
}

// TestOverlaysArePortable is about what the kernel may take when nothing is said.
func TestOverlaysArePortable(t *testing.T) {
	got := kernel.OverlayOptions()
	for _, name := range []string{"index", "redirect_dir", "metacopy"} {
		_, err := os.Stat("/sys/module/overlay/parameters/" + name)
		if slices.Contains(got, name+"=off") != (err == nil) {
			t.Errorf("options %q, and the kernel's %s: %v", got, name, err)
		}
	}
	cfg := Default()
	cfg.Overlayfs.Xino = "on,metacopy=on"
	if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), "overlayfs.xino") {
		t.Errorf("Check of another xino: %v", err)
	}
}

func prepareOrMounts(t *testing.T, sn snapshot.Store, i int) []mount.Mount {
	t.Helper()
	if i == 0 {
		return prepare(t, sn, "key", "base")
	}
	m, err := sn.Mounts(t.Context(), "key")
	if err != nil {
		t.Fatalf("Mounts: %v", err)
	}
	return m
}
