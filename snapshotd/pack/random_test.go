package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/tree"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, devices and mounts")
	}
}

// names are few, so that they are used again, and of every sort.
var names = []string{
	"a", "b", "c", "d", "e", "usr", "bin", "etc", "new\nline", "ünï cødé", " ", "-rf", "\xff\xfe\xfd", ".hidden", "..x", `back\slash`,
	strings.Repeat("n", 255), strings.Repeat("long/", 1)[:4] + strings.Repeat("y", 120),
}

// A gardener changes a tree at random, in the ways of whoever works in a
// container.
type gardener struct {
	t    testing.TB
	r    *rand.Rand
	root string
}

// tend makes n changes.
func tend(t testing.TB, seed uint64, root string, n int) {
	g := &gardener{t, rand.New(rand.NewPCG(seed, seed)), root}
	for range n {
		if err := g.change(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// pick returns something that is there, of a kind: "d" is a directory, "f" a
// file, "-" anything but a directory, "*" anything but the root.
func (g *gardener) pick(kind string) string {
	var all []string
	err := filepath.WalkDir(g.root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if kind == "d" && d.IsDir() || kind == "f" && d.Type() == 0 || kind == "-" && !d.IsDir() || kind == "*" && path != g.root {
			all = append(all, path)
		}
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	if len(all) == 0 {
		return ""
	}
	return all[g.r.IntN(len(all))]
}

// place returns a path to make something at; what was there is gone.
func (g *gardener) place() string {
	dir := g.pick("d")
	for strings.Count(dir[len(g.root):], "/") > 5 {
		dir = filepath.Dir(dir)
	}
	path := dir + "/" + names[g.r.IntN(len(names))]
	if err := os.RemoveAll(path); err != nil {
		g.t.Fatal(err)
	}
	return path
}

func (g *gardener) change() error {
	switch g.r.IntN(24) {
	case 0, 1, 2, 3:
		return g.file(g.place())
	case 4, 5:
		path := g.place()
		return errors.Join(os.Mkdir(path, 0o700), g.looks(path))
	case 6:
		path := g.place()
		target := []string{"a", "/etc/passwd", "../../..", strings.Repeat("t", 300), "new\nline"}[g.r.IntN(5)]
		return errors.Join(os.Symlink(target, path), g.looks(path))
	case 7:
		path := g.place()
		kind := []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK}[g.r.IntN(4)]
		return errors.Join(unix.Mknod(path, kind|0o640, int(unix.Mkdev(1+uint32(g.r.IntN(300)), uint32(g.r.IntN(70000))))), g.looks(path))
	case 8, 9:
		return g.link()
	case 10, 11:
		if path := g.pick("*"); path != "" {
			return os.RemoveAll(path)
		}
	case 12, 13:
		return g.rename()
	case 14:
		return g.renew()
	case 15, 16, 17:
		if path := g.pick("*"); path != "" {
			return g.looks(path)
		}
	case 18:
		return g.nothing()
	case 19:
		return g.part()
	case 20:
		if path := g.pick("f"); path != "" {
			return appendTo(path)
		}
	case 21:
		return g.inPlace()
	case 22, 23:
		if path := g.pick("*"); path != "" {
			return g.attribute(path)
		}
	}
	return nil
}

func (g *gardener) file(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, g.r.IntN(3)*g.r.IntN(40_000))
	for i := range b {
		b[i] = byte(g.r.IntN(20))
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	if g.r.IntN(8) == 0 {
		if err := f.Truncate(int64(g.r.IntN(1 << 20))); err != nil {
			return err
		}
	}
	return g.looks(path)
}

// link makes another name of something.
func (g *gardener) link() error {
	from := g.pick("-")
	to := g.place()
	if from == "" || from == to {
		return nil
	}
	err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // it was in the place
	}
	return err
}

// rename moves something over something else.
func (g *gardener) rename() error {
	from := g.pick("*")
	to := g.place()
	if from == "" || strings.HasPrefix(to+"/", from+"/") {
		return nil
	}
	err := os.Rename(from, to)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.EXDEV) {
		// So overlayfs says that whoever moves directories copies them.
		out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
		if err != nil {
			return fmt.Errorf("cp: %w: %s", err, out)
		}
		return os.RemoveAll(from)
	}
	return err
}

// renew makes a directory again, with something of what was in it.
func (g *gardener) renew() error {
	dir := g.pick("d")
	if dir == g.root {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		return err
	}
	for _, e := range entries {
		if g.r.IntN(2) == 0 {
			if err := g.file(dir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return g.looks(dir)
}

// looks changes owner, mode and times.
func (g *gardener) looks(path string) error {
	if g.r.IntN(2) == 0 {
		if err := os.Lchown(path, []int{0, 1000, 100_000, 3_000_000}[g.r.IntN(4)], g.r.IntN(3)*500); err != nil {
			return err
		}
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeSymlink == 0 && g.r.IntN(2) == 0 {
		if err := unix.Chmod(path, []uint32{0o644, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o600}[g.r.IntN(7)]); err != nil {
			return err
		}
	}
	at := unix.Timespec{Sec: int64(g.r.IntN(2_000_000_000)), Nsec: int64(g.r.IntN(2) * g.r.IntN(1_000_000_000))}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

// nothing brings a file up, as a chown of everything does, and changes nothing.
func (g *gardener) nothing() error {
	path := g.pick("*")
	if path == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	value := make([]byte, 100)
	n, err := unix.Lgetxattr(path, "security.capability", value)
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err == nil {
		return errors.Join(unix.Chmod(path, st.Mode&0o7777), unix.Lsetxattr(path, "security.capability", value[:n], 0))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return unix.Chmod(path, st.Mode&0o7777) // the kernel takes set-user-id away
	}
	return nil
}

// part takes a file from its other names, and it looks as before.
func (g *gardener) part() error {
	path := g.pick("f")
	if path == "" {
		return nil
	}
	other := path[:strings.LastIndexByte(path, '/')] + "/parting"
	if out, err := exec.Command("cp", "-a", "--", path, other).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return os.Rename(other, path)
}

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("more")
	return errors.Join(err, f.Close())
}

// inPlace changes one byte, and puts the time back.
func (g *gardener) inPlace() error {
	path := g.pick("f")
	if path == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Size == 0 {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{byte(g.r.IntN(256))}, g.r.Int64N(st.Size))
	return errors.Join(err, f.Close(), unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// attribute sets an extended attribute, where there can be one.
func (g *gardener) attribute(path string) error {
	st, err := os.Lstat(path)
	if err != nil || !st.IsDir() && !st.Mode().IsRegular() {
		return err
	}
	switch g.r.IntN(5) {
	case 0:
		if err := unix.Lremovexattr(path, "user.one"); !errors.Is(err, unix.ENODATA) {
			return err
		}
		return nil
	case 1:
		return unix.Lsetxattr(path, "user.two", []byte("\x00binary\xff\n"), 0)
	case 2:
		if !st.IsDir() {
			capability := []byte{1, 0, 0, 2, byte(g.r.IntN(8)), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			return unix.Lsetxattr(path, "security.capability", capability, 0)
		}
		return unix.Lsetxattr(path, "system.posix_acl_default", acl(6), 0)
	case 3:
		return unix.Lsetxattr(path, "system.posix_acl_access", acl(uint16(g.r.IntN(8))), 0)
	}
	return unix.Lsetxattr(path, "user.one", make([]byte, g.r.IntN(1000)), 0)
}

// acl is an access control list with a rule for user 1000.
func acl(perm uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, perm, 1000}, {4, 4, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// clone copies a tree with everything that it has.
func clone(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if out, err := exec.Command("cp", "-a", "--", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

func open(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// describe returns a line for each path, with everything that a layer can say.
func describe(t testing.TB, root *os.File) []string {
	t.Helper()
	first, names := make(map[string]string), make(map[string]int)
	var lines []string
	err := tree.Walk(t.Context(), int(root.Fd()), func(e *tree.Entry) error {
		if e.Is(unix.S_IFSOCK) {
			return nil
		}
		st := &e.Stat
		line := fmt.Sprintf("%q %o %d:%d %s", e.Path(), st.Mode, st.Uid, st.Gid, time.Unix(st.Mtim.Unix()).UTC().Format(time.RFC3339Nano))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			b := make([]byte, 5000)
			n, err := unix.Readlinkat(e.Dir, e.Name, b)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" to %q", b[:n])
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %x", st.Rdev)
		case unix.S_IFREG, unix.S_IFDIR:
			more, err := describeOpened(e)
			if err != nil {
				return err
			}
			line += more
		}
		if !e.Is(unix.S_IFDIR) && st.Nlink > 1 {
			// Which is first depends on the order of a walk.
			id := fmt.Sprint(st.Dev, " ", st.Ino)
			if first[id] == "" || e.Path() < first[id] {
				first[id] = e.Path()
			}
			names[id]++
			line += " link " + id
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range lines {
		if before, id, ok := strings.Cut(l, " link "); ok {
			lines[i] = before
			if names[id] > 1 {
				lines[i] += fmt.Sprintf(" link %q", first[id])
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func describeOpened(e *tree.Entry) (string, error) {
	fd, err := unix.Openat(e.Dir, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), e.Name)
	defer f.Close()
	more := ""
	if e.Is(unix.S_IFREG) {
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
		more = fmt.Sprintf(" %d bytes %.6x", e.Stat.Size, h.Sum(nil))
	}
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, list)
	if err != nil {
		return "", err
	}
	attrs := strings.Split(string(list[:n]), "\x00")
	slices.Sort(attrs)
	for _, name := range attrs {
		if !layer.Allowed(name) {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, name, v)
		if err != nil {
			return "", err
		}
		more += fmt.Sprintf(" %s=%x", name, v[:n])
	}
	return more, nil
}
