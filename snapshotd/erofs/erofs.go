// Package erofs keeps each committed snapshot as one file, an EROFS image, that
// overlayfs stacks.
//
// # On disk
//
//	<root>/probe/               used to find out whether images can be mounted
//	<root>/snapshots/<id>/fs/   what an active snapshot adds to its parent
//	<root>/snapshots/<id>/work/ overlayfs' own, of an active one
//	<root>/snapshots/<id>/layer.erofs       of a committed one, made of fs/
//	<root>/snapshots/<id>/layer.erofs.new   being made
//
// Views of a parent have no directory. The image is synced and renamed before
// the commit is on record, and fs/ and work/ go after that: until then the
// snapshot may go on as an active one.
//
// # Images
//
// They are not compressed, and the same tree gives the same image. Small
// contents are kept with their inode, all others in blocks of their own, and
// holes are holes. They are written here and not by a tool: a tool would be
// another process that reads what a hostile layer made, and takes a hundred
// times the memory for a layer of many files.
package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/rebase"
	"github.com/gantryd/gantry/snapshotd/tree"
)

// imageName is what the image of a snapshot is called in its directory.
const imageName = "layer.erofs"

// A Driver is the trees below one directory.
type Driver struct {
	dirs    driver.Dirs
	kernel  kernel.Kernel
	freeMin int64
	options []string // of overlays
	image   []string // of images
	mapsIDs bool     // the kernel shows images with the ids of a container
}

var (
	_ driver.Driver   = (*Driver)(nil)
	_ driver.Layered  = (*Driver)(nil)
	_ driver.Finisher = (*Driver)(nil)
)

// Open opens or makes the trees below root, which must be a clean absolute path
// without a comma, colon, backslash or quote. An error says why images cannot
// be mounted here.
func Open(root string, env driver.Env) (*Driver, error) {
	d := &Driver{
		dirs:    driver.Dirs{Dir: filepath.Join(root, "snapshots"), Disk: env.Disk, Log: env.Log},
		kernel:  env.Kernel,
		freeMin: env.FreeMin,
		options: kernel.OverlayOptions(),
		image:   []string{"ro"},
	}
	if err := d.dirs.Own(root); err != nil {
		return nil, err
	}
	return d, d.probe(root)
}

// probe makes an image, mounts it, and puts an overlay over it.
func (d *Driver) probe(root string) error {
	const name = "probe"
	parts := kernel.Overlay{Dir: root, Upper: name + "/upper", Work: name + "/work", Images: []string{name + "/lower/" + imageName}, Options: d.options}
	for _, p := range []string{name, parts.Upper, parts.Work, name + "/lower"} {
		if err := d.dirs.Disk.Mkdir(filepath.Join(root, p), 0o700); err != nil {
			return err
		}
	}
	image := filepath.Join(root, parts.Images[0])
	if !whole(image) {
		if err := d.publish(context.Background(), image, filepath.Join(root, parts.Upper)); err != nil {
			return err
		}
	}
	f, err := d.kernel.Overlay(parts)
	if err != nil {
		return err
	}
	defer f.Close()
	if !kernel.MountsFiles(image) {
		d.image = append(d.image, "loop")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	d.probeIDs(root, parts.Images)
	return nil
}

// probeIDs finds out whether images can be mounted with other ids, which the
// kernel learned for them and for overlays at the same time.
func (d *Driver) probeIDs(root string, images []string) {
	const somebody = 1
	one := []idmap.Range{{Host: somebody, Size: 1}}
	f, err := d.kernel.Overlay(kernel.Overlay{Dir: root, Images: images, IDs: idmap.Map{UIDs: one, GIDs: one}})
	if err == nil {
		defer f.Close()
		var st unix.Stat_t
		if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Uid != somebody {
			err = errors.ErrUnsupported
		}
	}
	if err != nil {
		d.dirs.Log.Info("images cannot have the ids of containers here", "err", err)
	}
	d.mapsIDs = err == nil
}

func (d *Driver) fs(id uint64) string        { return d.dirs.Path(id, "fs") }
func (d *Driver) work(id uint64) string      { return d.dirs.Path(id, "work") }
func (d *Driver) imagePath(id uint64) string { return d.dirs.Path(id, imageName) }

// Traits implements driver.Driver.
func (d *Driver) Traits() driver.Traits {
	return driver.Traits{
		Traits: snapshot.Traits{Rebase: true, RemapIDs: d.mapsIDs}, Beside: true, NoChown: true,
		Kept: []string{imageName, imageName + driver.Unpublished},
	}
}

// Create implements driver.Driver. The tree looks like its parent's.
func (d *Driver) Create(_ context.Context, s driver.Snapshot) error {
	return d.dirs.MakeUpper(s, d.owner)
}

// owner is whom the upper directory of a snapshot belongs to: the container's
// root, or whoever its parent belongs to.
func (d *Driver) owner(s driver.Snapshot) (uid, gid uint32, err error) {
	ids, err := d.ids(s)
	if err != nil {
		return 0, 0, err
	}
	if !ids.IsZero() {
		uid, gid = ids.Root()
		return uid, gid, nil
	}
	if uid, gid, err = d.rootOf(s.Parents[0].ID); err != nil {
		err = fmt.Errorf("parent: %w", err)
	}
	return uid, gid, err
}

// rootOf reads who owns the root of an image.
func (d *Driver) rootOf(id uint64) (uid, gid uint32, err error) {
	f, err := os.Open(d.imagePath(id))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	s, err := readSuper(f)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %v: %w", f.Name(), err, errdefs.ErrDataLoss)
	}
	return ownerAt(f, s.root)
}

// Mounts implements driver.Driver.
func (d *Driver) Mounts(_ context.Context, s driver.Snapshot) ([]mount.Mount, error) {
	return d.mounts(s)
}

// overlay is what is stacked for a snapshot.
func (d *Driver) overlay(parents []driver.Ref) kernel.Overlay {
	o := kernel.Overlay{Dir: d.dirs.Dir, Options: d.options}
	for _, p := range parents {
		o.Images = append(o.Images, d.dirs.Rel(p.ID, imageName))
	}
	return o
}

// Extract implements driver.Driver.
func (d *Driver) Extract(_ context.Context, s driver.Snapshot, alone bool) (layer.Target, func() error, error) {
	own, err := d.dirs.Open(s.ID, "fs")
	if err != nil {
		return layer.Target{}, nil, err
	}
	t := layer.Target{Own: own, Attr: kernel.OverlayAttrs(), Overlay: alone || len(s.Parents) > 0, Detached: alone}
	if len(s.Parents) > 0 {
		o := d.overlay(s.Parents)
		o.Upper, o.Work = d.dirs.Rel(s.ID, "fs"), d.dirs.Rel(s.ID, "work")
		t.Root = func() (*os.File, error) { return d.kernel.Overlay(o) }
	}
	return t, own.Close, nil
}

// Tree implements driver.Driver. What an active snapshot has is shown as a layer
// over the images.
func (d *Driver) Tree(_ context.Context, s driver.Snapshot) (*os.File, error) {
	o := d.overlay(s.Parents)
	switch {
	case s.Kind == snapshot.Committed:
		o = d.overlay(append([]driver.Ref{s.Ref}, s.Parents...))
	case len(s.Parents) == 0:
		return d.dirs.Open(s.ID, "fs")
	case s.Kind == snapshot.Active:
		o.Lower = []string{d.dirs.Rel(s.ID, "fs")}
	}
	return d.kernel.Overlay(o)
}

// Upper implements driver.Layered.
func (d *Driver) Upper(s driver.Snapshot) (*os.File, error) {
	if s.Kind == snapshot.Committed {
		return d.kernel.Overlay(d.overlay([]driver.Ref{s.Ref}))
	}
	return d.dirs.Open(s.ID, "fs")
}

// Commit implements driver.Driver.
func (d *Driver) Commit(ctx context.Context, s, as driver.Snapshot) (snapshot.Usage, error) {
	if len(s.Parents) == 0 {
		if err := d.settle(ctx, s.ID, as.Parents); err != nil {
			return snapshot.Usage{}, err
		}
	}
	if err := d.publish(ctx, d.imagePath(s.ID), d.fs(s.ID)); err != nil {
		return snapshot.Usage{}, err
	}
	return d.Usage(ctx, as)
}

// settle puts what was filled alone on its parents.
func (d *Driver) settle(ctx context.Context, id uint64, parents []driver.Ref) error {
	own, err := d.dirs.Open(id, "fs")
	if err != nil {
		return err
	}
	defer own.Close()
	if len(parents) == 0 {
		return rebase.Onto(ctx, own, nil)
	}
	return rebase.Onto(ctx, own, func() (*os.File, error) { return d.kernel.Overlay(d.overlay(parents)) })
}

// publish makes the image of a directory.
func (d *Driver) publish(ctx context.Context, image, dir string) error {
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	err = d.dirs.Disk.Publish(image, func(f *os.File) error {
		return build(ctx, f, int(root.Fd()), kernel.OverlayAttrs(), d.freeMin)
	})
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("image: %v: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// Finish implements driver.Finisher.
func (d *Driver) Finish(ctx context.Context, r driver.Ref) error {
	for _, dir := range []string{d.fs(r.ID), d.work(r.ID)} {
		if err := d.dirs.Disk.RemoveTree(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// Usage implements driver.Driver.
func (d *Driver) Usage(ctx context.Context, s driver.Snapshot) (snapshot.Usage, error) {
	if s.Kind == snapshot.Committed {
		var st unix.Stat_t
		if err := unix.Lstat(d.imagePath(s.ID), &st); err != nil {
			return snapshot.Usage{}, &os.PathError{Op: "stat", Path: d.imagePath(s.ID), Err: err}
		}
		return snapshot.Usage{Inodes: 1, Size: st.Blocks * 512}, nil
	}
	dir, err := d.dirs.Open(s.ID, "fs")
	if err != nil {
		return snapshot.Usage{}, err
	}
	defer dir.Close()
	u, err := tree.Measure(ctx, int(dir.Fd()))
	return snapshot.Usage(u), err
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, r driver.Ref) error { return d.dirs.Remove(ctx, r.ID) }

// IDs implements driver.Driver.
func (d *Driver) IDs(context.Context) ([]uint64, error) { return d.dirs.IDs() }

// Has implements driver.Driver.
func (d *Driver) Has(_ context.Context, s driver.Snapshot) bool {
	if s.Kind != snapshot.Committed {
		return d.dirs.Has(s.ID, "fs") && (s.Kind != snapshot.Active || d.dirs.Has(s.ID, "work"))
	}
	return whole(d.imagePath(s.ID))
}

// whole tells whether there is an image, and all of it.
func whole(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = readSuper(f)
	return err == nil
}
