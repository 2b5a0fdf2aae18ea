package snapshotd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// badSync is a disk that cannot be synced for a while.
type badSync struct {
	driver.Disk
	bad bool
}

var errSync = errors.New("input/output error")

func (d *badSync) SyncFS(path string) error {
	if d.bad {
		return errSync
	}
	return d.Disk.SyncFS(path)
}

func (d *badSync) Publish(path string, write func(*os.File) error) error {
	if d.bad {
		return errSync
	}
	return d.Disk.Publish(path, write)
}

// TestACommitThatFailsLeavesItWritable is about what a commit freezes.
func TestACommitThatFailsLeavesItWritable(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		disk := &badSync{Disk: driver.Files{}}
		s, err := open(configOf(t, snapshotter), quietNeeds(t), disk, kernel.New())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sn := inOf(t, s, one, snapshotter)
		mounts := prepare(t, sn, "key", "")
		write(t, mounts, "1")
		disk.bad = true
		if err := sn.Commit(t.Context(), "name", "key", snapshot.Options{}); !errors.Is(err, errSync) {
			t.Errorf("Commit: %v, want %v", err, errSync)
		}
		write(t, mounts, "2")
		disk.bad = false
		commitTo(t, sn, "name", "key", "")
		prepare(t, sn, "child", "name")
		for _, key := range []string{"name", "child"} {
			if got, err := written(t, sn, key); got != "2" {
				t.Errorf("%s has %q, %v, want 2", key, got, err)
			}
		}
	})
}

// TestWhatIsCommittedInBtrfsIsFrozen also for who has it mounted still.
func TestWhatIsCommittedInBtrfsIsFrozen(t *testing.T) {
	needRoot(t)
	s := openTest(t, configOf(t, "btrfs"), quietNeeds(t))
	sn := inOf(t, s, one, "btrfs")
	mounts := prepare(t, sn, "key", "")
	commitTo(t, sn, "name", "key", "")
	if err := os.WriteFile(filepath.Join(mounts[0].Source, "later"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want %v", err, unix.EROFS)
	}
}

// TestUsageOfAChildIsWhatItHasItself, where that can be told.
func TestUsageOfAChildIsWhatItHasItself(t *testing.T) {
	onEach(t, func(t *testing.T, snapshotter string) {
		blobs := difftest.NewBlobs()
		s := openBlobsOn(t, snapshotter, blobs)
		sn := inOf(t, s, one, snapshotter)
		big := difftest.Tar(difftest.Dir("d"), difftest.File("d/f", strings.Repeat("x", 1_000_000)))
		applyLayer(t, s, blobs, one, prepare(t, sn, "key", ""), big)
		commitTo(t, sn, "name", "key", "")
		applyLayer(t, s, blobs, one, prepare(t, sn, "child", "name"), difftest.Tar(difftest.File("g", strings.Repeat("y", 100_000))))
		// The root and the file; a copy has all that its parent has.
		least, most, inodes := int64(100_000), int64(200_000), int64(2)
		if snapshotter == "native" {
			least, most, inodes = 1_100_000, 1_300_000, 4
		}
		if got, err := sn.Usage(t.Context(), "child"); err != nil || got.Inodes != inodes || got.Size < least || got.Size > most {
			t.Errorf("Usage: %+v, %v, want %d inodes of %d to %d bytes", got, err, inodes, least, most)
		}
	})
}
