package snapshotd

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// A stopped driver waits in each commit, and tells when it was asked for mounts.
type stopped struct {
	driver.Driver
	committing, goOn, found chan struct{}
	once                    *sync.Once
	commits                 *[]string
}

func stop(s *Store, snapshotter string) stopped {
	d := stopped{
		Driver: s.drivers[snapshotter], committing: make(chan struct{}, 1), goOn: make(chan struct{}),
		found: make(chan struct{}), once: new(sync.Once), commits: new([]string),
	}
	s.drivers[snapshotter] = d
	return d
}

func (d stopped) Commit(ctx context.Context, s, as driver.Snapshot) (snapshot.Usage, error) {
	*d.commits = append(*d.commits, as.Key)
	d.committing <- struct{}{}
	<-d.goOn
	return d.Driver.Commit(ctx, s, as)
}

func (d stopped) Find(mounts []mount.Mount) (driver.Found, bool) {
	defer d.once.Do(func() { close(d.found) })
	return d.Driver.Find(mounts)
}

// TestWhatIsCommittedIsNotChangedByWhoWaited has a layer and another commit wait
// for a commit of the same snapshot. They have to find out that it is not active
// any more.
func TestWhatIsCommittedIsNotChangedByWhoWaited(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	d := stop(s, Overlayfs)
	sn := in(t, s, one)
	mounts := prepare(t, sn, "key", "")
	archive := difftest.Tar(difftest.File("late", "x"))
	blobs.Put(one.Name, digest.FromBytes(archive), archive)

	var commits, applied = make(chan error, 2), make(chan error, 1)
	go func() { commits <- sn.Commit(t.Context(), "first", "key", snapshot.Options{}) }()
	<-d.committing
	go func() { commits <- sn.Commit(t.Context(), "second", "key", snapshot.Options{}) }()
	go func() {
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(archive), Size: int64(len(archive))}
		_, err := s.Layers().In(one).Apply(t.Context(), layer, mounts, diff.ApplyOptions{})
		applied <- err
	}()
	<-d.found
	close(d.goOn)
	if err := <-applied; !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Apply to what was committed meanwhile = %v, want %v", err, errdefs.ErrInvalidArgument)
	}
	if err := errors.Join(<-commits, <-commits); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("both commits = %v, want one of them %v", err, errdefs.ErrNotFound)
	}
	if len(*d.commits) != 1 {
		t.Errorf("the tree was committed as %q, want once", *d.commits)
	}
	if entries, err := os.ReadDir(mounts[0].Source); err != nil || len(entries) > 0 {
		t.Errorf("the committed tree has %v, %v, want nothing", entries, err)
	}
}
