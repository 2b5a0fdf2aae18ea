package snapshotd

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/unpack/unpacktest"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// rootlessEnv says to a copy of this program that it is the one in a user
// namespace.
const rootlessEnv = "SNAPSHOTD_TEST_ROOTLESS"

// rootlessID is who that one is outside, and rootlessIDs how many it has, or one.
const (
	rootlessID  = 100000
	rootlessIDs = 65536
)

// TestRootless unpacks, commits, mounts and makes layers in a user namespace with
// as many ids as a user is given, and in one with a single id.
func TestRootless(t *testing.T) {
	needRoot(t)
	switch os.Getenv(rootlessEnv) {
	case "alone":
		t.Run("alone", rootlessAlone)
		return
	case "overlayfs":
		t.Run("overlayfs", rootlessOverlayfs)
		t.Run("plugins", rootlessPlugins)
		t.Run("unpacking", func(t *testing.T) {
			unpacktest.Run(t, func(t *testing.T, n unpacktest.Node) unpacktest.Fixture { return unpackInto(t, n, Overlayfs) })
		})
		return
	}
	inUserNamespace(t, "overlayfs", rootlessIDs)
	inUserNamespace(t, "alone", 1)
}

// inUserNamespace runs what of this test there is for one.
func inUserNamespace(t *testing.T, what string, size int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chown(dir, rootlessID, rootlessID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: rootlessID, Size: size}}
	// By this name it is found whatever the directories above it allow.
	c := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestRootless$", "-test.v")
	c.Env = append(os.Environ(), rootlessEnv+"="+what, "TMPDIR="+dir)
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings:                ids,
		GidMappings:                ids,
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{},
		Pdeathsig:                  syscall.SIGKILL,
	}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRootless/"+what) {
		t.Fatalf("%s: in a user namespace: %v\n%s", what, err, out)
	}
}

func rootlessOverlayfs(t *testing.T) {
	if !kernel.InUserNamespace() {
		t.Fatal("this is no user namespace")
	}
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	owned := func(e difftest.Entry, uid int) difftest.Entry {
		e.Uid, e.Gid = uid, uid
		return e
	}
	attr := difftest.File("attr", "x")
	attr.PAXRecords = map[string]string{"SCHILY.xattr.user.own": "v", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.opaque": "y"}
	setuid := owned(difftest.File("setuid", "x"), 7)
	setuid.Mode = 0o4755
	base := difftest.Tar(
		difftest.Dir("etc"), owned(difftest.File("etc/user", "1"), 1000), difftest.File("etc/gone", "x"),
		difftest.Dir("dir"), difftest.File("dir/below", "x"), setuid, attr,
		difftest.Symlink("link", "etc"), difftest.Link("hard", "etc/user"),
		difftest.Node("null", tar.TypeChar, 1, 3), difftest.Node("disk", tar.TypeBlock, 8, 0), difftest.Node("pipe", tar.TypeFifo, 0, 0),
		owned(difftest.File("last", "x"), rootlessIDs-1),
	)
	top := difftest.Tar(
		difftest.File("etc/.wh.gone", ""), difftest.File("etc/new", "2"),
		difftest.Dir("dir"), difftest.File("dir/.wh..wh..opq", ""), difftest.File("dir/above", "2"),
	)
	applyLayer(t, s, blobs, one, prepare(t, sn, "a", ""), base)
	commitTo(t, sn, "base", "a", "")
	m := prepare(t, sn, "b", "base")
	if !slices.Contains(m[0].Options, "userxattr") || slices.Contains(m[0].Options, "redirect_dir=off") {
		t.Errorf("options %q", m[0].Options)
	}
	applyLayer(t, s, blobs, one, m, top)
	commitTo(t, sn, "top", "b", "")

	v, err := sn.View(t.Context(), "view", "top", snapshot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root := attachTest(t, v)
	for path, want := range map[string]string{
		"etc/user": "1000:1000", "etc/new": "0:0", "setuid": "7:7", "last": "65535:65535", "dir/above": "0:0", "pipe": "0:0",
		"etc/gone": "", "dir/below": "", "null": "", "disk": "",
	} {
		var st unix.Stat_t
		err := unix.Fstatat(int(root.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW)
		if want == "" && !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s is there: %v", path, err)
		}
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); want != "" && (err != nil || got != want) {
			t.Errorf("%s belongs to %s, want %s; %v", path, got, want, err)
		}
	}

	// What a container writes is a layer like any other.
	active := prepare(t, sn, "c", "top")
	w := attachTest(t, active)
	at := func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", w.Fd(), name) }
	if err := errors.Join(os.WriteFile(at("written"), []byte("3"), 0o600), os.Remove(at("etc/user")), os.RemoveAll(at("dir")), os.Mkdir(at("dir"), 0o755)); err != nil {
		t.Fatal(err)
	}
	got := layered{s, blobs, sn}.names(t, v, active)
	if want := []string{"dir/", "dir/.wh.above", "etc/", "etc/.wh.user", "written"}; !cmp.Equal(want, got) {
		t.Errorf("the layer has %q, want %q", got, want)
	}

	refusesStranger(t, s, blobs, prepare(t, sn, "d", "base"), rootlessIDs)
	for _, key := range []string{"view", "c", "d", "top", "base"} {
		if err := sn.Remove(t.Context(), key); err != nil {
			t.Errorf("Remove(%q): %v", key, err)
		}
	}
	if err := sn.Cleanup(t.Context()); err != nil {
		t.Errorf("Cleanup: %v", err)
	}
}

// rootlessAlone has no user but root, which is enough for files of root.
func rootlessAlone(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	applyLayer(t, s, blobs, one, prepare(t, sn, "a", ""), difftest.Tar(difftest.Dir("etc"), difftest.File("etc/gone", "x")))
	commitTo(t, sn, "base", "a", "")
	m := prepare(t, sn, "b", "base")
	applyLayer(t, s, blobs, one, m, difftest.Tar(difftest.File("etc/.wh.gone", ""), difftest.File("etc/new", "2")))
	root := attachTest(t, m)
	for path, want := range map[string]error{"etc/new": nil, "etc/gone": unix.ENOENT} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(root.Fd()), path, &st, 0); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	commitTo(t, sn, "top", "b", "")
	refusesStranger(t, s, blobs, prepare(t, sn, "c", "top"), 1000)
}

// refusesStranger applies a file of somebody whom the namespace does not have.
func refusesStranger(t *testing.T, s *Store, blobs *difftest.Blobs, into []mount.Mount, id int) {
	t.Helper()
	e := difftest.File("stranger", "x")
	e.Uid, e.Gid = id, id
	archive := difftest.Tar(e)
	d := digest.FromBytes(archive)
	blobs.Put(one.Name, d, archive)
	_, err := s.Layers().In(one).Apply(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(archive))}, into, diff.ApplyOptions{})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), fmt.Sprintf("%d:%d", id, id)) {
		t.Errorf("Apply of a file of nobody here: %v", err)
	}
}

// rootlessPlugins is what clients are told: what there is not, and why.
func rootlessPlugins(t *testing.T) {
	s := openTest(t, testConfig(t), testNeeds(t))
	for _, p := range s.Plugins() {
		switch p.ID {
		case "overlayfs", "native":
			if p.Skip != "" || slices.Contains(p.Capabilities, "rebase") || slices.Contains(p.Capabilities, "remap-ids") {
				t.Errorf("%s: skipped %q, capabilities %q", p.ID, p.Skip, p.Capabilities)
			}
		case "btrfs":
			if p.Skip == "" {
				t.Errorf("%s is there", p.ID)
			}
		case "erofs":
			if p.Type == "io.containerd.snapshotter.v1" && p.Skip == "" {
				t.Errorf("%s is there", p.ID)
			}
		}
	}
}
