package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
)

// smallDisk mounts a disk of 320 MiB for the test, which unmounts it.
func smallDisk(t *testing.T, kind string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts a small disk")
	}
	dir := t.TempDir()
	args := []string{"mount", "-t", "tmpfs", "-o", "size=320m", "none", dir}
	if kind == "ext4" {
		image := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 320<<20))
		if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", image).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v: %s", err, out)
		}
		args = []string{"mount", "-o", "loop", image, dir}
	}
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("mount of %s: %v: %s", kind, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("umount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// A crowd writes blobs and removes some of them.
type crowd struct {
	s    *Store
	stop context.CancelFunc
	wg   sync.WaitGroup

	// mu guards the fields below it.
	mu      sync.Mutex
	there   map[digest.Digest]bool
	written int
	refused int
	failed  error
}

const crowdSize = 4

func startCrowd(t *testing.T, s *Store) *crowd {
	ctx, stop := context.WithCancel(t.Context())
	c := &crowd{s: s, stop: stop, there: map[digest.Digest]bool{}}
	for i := range crowdSize {
		c.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				c.turn(ctx, fmt.Sprintf("%d-%06d ", i, n))
			}
		})
	}
	return c
}

// turn writes a blob, and removes it again one time in four.
func (c *crowd) turn(ctx context.Context, text string) {
	b := bytes.Repeat([]byte(text), 40_000)
	d := digest.FromBytes(b)
	err := content.Put(ctx, c.s.In(one), content.WriterOptions{Ref: text[:1], Expected: d, Total: int64(len(b))}, bytes.NewReader(b), nil)
	removed := false
	if err == nil && len(text)%2 == 0 && b[7]%4 == 0 {
		err = c.s.In(one).Delete(ctx, d)
		removed = err == nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err == nil:
		c.written++
		c.there[d] = !removed
	case errors.Is(err, errdefs.ErrResourceExhausted):
		c.refused++
	case c.failed == nil:
		c.failed = err
	}
}

func (c *crowd) counts() (written, refused int, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written, c.refused, c.failed
}

// TestDiskFullWhileWritersWrite fills a disk to its last block while writers
// write: they are refused and nothing else happens, and when there is room again
// they go on.
func TestDiskFullWhileWritersWrite(t *testing.T) {
	for _, kind := range []string{"ext4", "tmpfs"} {
		t.Run(kind, func(t *testing.T) { fullWhileWriting(t, kind) })
	}
}

func fullWhileWriting(t *testing.T, kind string) {
	disk := smallDisk(t, kind)
	cfg := testConfig(t)
	cfg.Root = filepath.Join(disk, "contentd")
	s, err := Open(cfg, Needs{})
	must(t, err)
	defer func() { closeStore(t, s) }()
	c := startCrowd(t, s)
	defer c.wg.Wait()
	defer c.stop()
	eventually(t, "blobs are written", func() bool { n, _, _ := c.counts(); return n > 20 })

	fill := fillUp(t, disk)
	eventually(t, "writers are refused", func() bool { _, n, _ := c.counts(); return n > 3*crowdSize })
	c.stop()
	c.wg.Wait()
	written, refused, failed := c.counts()
	t.Logf("%d written, %d refused", written, refused)
	if failed != nil {
		t.Errorf("a writer got %v", failed)
	}
	c.check(t, s)

	// What frees room goes on, and what is full can be opened where there is
	// a ballast.
	removed := 0
	for d, there := range c.there {
		if !there {
			continue
		}
		err := s.In(one).Delete(t.Context(), d)
		if err != nil {
			t.Errorf("Delete on a full disk: %v", err)
			break
		}
		c.there[d] = false
		if removed++; removed == 20 {
			break
		}
	}
	s.sweep(t.Context())
	if kind == "ext4" {
		closeStore(t, s)
		s, err = Open(cfg, Needs{})
		must(t, err)
		c.check(t, s)
	}

	must(t, os.Remove(fill))
	eventually(t, "blobs are written again", func() bool {
		o := content.WriterOptions{Ref: "again", Expected: bodyD}
		err := content.Put(t.Context(), s.In(one), o, bytes.NewReader(body), nil)
		if err != nil && !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Fatalf("Put: %v", err)
		}
		return err == nil
	})
	c.check(t, s)
}

// check wants all to be there that was acknowledged.
func (c *crowd) check(t *testing.T, s *Store) {
	t.Helper()
	for d, there := range c.there {
		if !there {
			continue
		}
		if _, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil {
			t.Errorf("ReadAll: %v", err)
		}
	}
}

// fillUp takes all the room of a disk, again and again, until none comes back.
func fillUp(t *testing.T, disk string) (name string) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filling"))
	must(t, err)
	defer f.Close()
	part := make([]byte, 1<<20)
	for size := len(part); size >= 512; {
		if _, err = f.Write(part[:size]); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else {
			must(t, err)
		}
	}
	return f.Name()
}

// TestDamagedDatabaseOnAFullDiskWaitsForRoom: what is there stays as it is, and
// is made again when there is room to do it.
func TestDamagedDatabaseOnAFullDiskWaitsForRoom(t *testing.T) {
	disk := smallDisk(t, "ext4")
	l := newLibrary(t, true)
	from := l.cfg.Root
	l.cfg.Root = filepath.Join(disk, "contentd")
	if out, err := exec.Command("cp", "-a", from, l.cfg.Root).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	must(t, os.Remove(filepath.Join(l.db(), "MANIFEST")))
	fill := fillUp(t, disk)
	for range 2 {
		s, err := Open(l.cfg, Needs{})
		if err == nil {
			closeStore(t, s)
			t.Fatal("Open on a full disk: no error")
		}
		wantKind(t, "Open", err, errdefs.ErrResourceExhausted)
	}
	must(t, os.Remove(fill))
	began := time.Now()
	s := openStore(t, l.cfg, nil)
	t.Logf("made again in %s", time.Since(began))
	l.check(t, s, "with room")
}
