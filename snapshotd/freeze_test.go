package snapshotd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// An interrupted driver does something else when a tree was committed, and before
// the record says so.
type interrupted struct {
	driver.Driver
	driver.Freezer
	then func()
}

func interrupt(s *Store, snapshotter string, then func()) {
	d := s.drivers[snapshotter]
	s.drivers[snapshotter] = interrupted{d, d.(driver.Freezer), then}
}

func (d interrupted) Commit(ctx context.Context, s, as driver.Snapshot) (snapshot.Usage, error) {
	u, err := d.Driver.Commit(ctx, s, as)
	if then := d.then; then != nil {
		then()
	}
	return u, err
}

// TestMountsBesideACommitThawsNothing asks for mounts of what is being committed.
func TestMountsBesideACommitThawsNothing(t *testing.T) {
	needRoot(t)
	s := openTest(t, configOf(t, "btrfs"), quietNeeds(t))
	sn := inOf(t, s, one, "btrfs")
	dir := prepare(t, sn, "key", "")[0].Source
	interrupt(s, "btrfs", func() {
		if _, err := sn.Mounts(t.Context(), "key"); err != nil {
			t.Errorf("Mounts: %v", err)
		}
	})
	commitTo(t, inOf(t, s, one, "btrfs"), "name", "key", "")
	if err := os.WriteFile(filepath.Join(dir, "later"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into what is committed: %v, want %v", err, unix.EROFS)
	}
}

// TestWhatIsNotCommittedIsThawed has another take the name of a snapshot, and
// then a commit that is cut short.
func TestWhatIsNotCommittedIsThawed(t *testing.T) {
	needRoot(t)
	cfg := configOf(t, "btrfs")
	s := openTest(t, cfg, quietNeeds(t))
	sn := inOf(t, s, one, "btrfs")
	dir := prepare(t, sn, "key", "")[0].Source
	prepare(t, sn, "other", "")
	interrupt(s, "btrfs", func() { commitTo(t, sn, "name", "other", "") })
	if err := inOf(t, s, one, "btrfs").Commit(t.Context(), "name", "key", snapshot.Options{}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Commit of a name that was taken = %v, want %v", err, errdefs.ErrAlreadyExists)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Errorf("after a commit that failed: %v", err)
	}
	if err := errors.Join((driver.Files{}).FreezeVolume(dir, true), s.Close()); err != nil {
		t.Fatal(err)
	}
	openTest(t, cfg, quietNeeds(t))
	if err := os.WriteFile(filepath.Join(dir, "y"), nil, 0o600); err != nil {
		t.Errorf("after a commit that was cut short: %v", err)
	}
}

// TestSnapshotsOnAFileSystemOfTheirOwnAreActivated, which begins between the root
// of the daemon and that of the snapshotter.
func TestSnapshotsOnAFileSystemOfTheirOwnAreActivated(t *testing.T) {
	needRoot(t)
	cfg := configOf(t, "btrfs")
	s := openTest(t, cfg, quietNeeds(t))
	t.Cleanup(func() {
		for _, p := range mountedBelow(t, cfg.State) {
			unix.Unmount(p, unix.MNT_DETACH)
		}
	})
	mounts := prepare(t, inOf(t, s, one, "btrfs"), "key", "")
	write(t, mounts, "1")
	info, err := s.Activations().In(one).Activate(t.Context(), "n", mounts, activation.Options{Temporary: true})
	if err != nil {
		t.Fatalf("Activate: %v", err)
	}
	if entries, err := os.ReadDir(info.System[0].Source); err != nil || len(entries) != 1 {
		t.Errorf("%v shows %v, %v, want one file", info.System, entries, err)
	}
	if err := s.Activations().In(one).Deactivate(t.Context(), "n"); err != nil {
		t.Error(err)
	}
	// A place is in the trees of a snapshotter and in nothing else of it.
	id := filepath.Base(filepath.Dir(mounts[0].Source))
	for _, path := range []string{"btrfs/notes/" + id, "btrfs/snapshots/../snapshots/" + id, "overlayfs/snapshots/" + id} {
		if p, err := (places{s}).Place("one", cfg.Root+"/"+path); err == nil {
			p.Dir.Close()
			t.Errorf("Place of %s is a snapshot's", path)
		}
	}
}
