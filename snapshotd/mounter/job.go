package mounter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/snapshotd/loop"
)

// A job is an activation being made.
type job struct {
	s       *Store
	ns, dir string
	made    []activation.Active
	devices []string // of each that was made; empty if it is no loop device
	writes  []bool   // whether each can be written to
}

// point is where the i-th mount is.
func (j *job) point(i int) string { return filepath.Join(j.dir, strconv.Itoa(i)) }

// run makes what the plan says and returns what is left to the caller.
func (j *job) run(ctx context.Context, mounts []mount.Mount, p activation.Plan, temporary bool) ([]mount.Mount, error) {
	if p.First > 0 {
		if err := j.s.kernel.Mkdir(j.dir); err != nil {
			return nil, err
		}
	}
	left := append([]mount.Mount(nil), mounts[p.First:]...)
	for i, m := range mounts[:min(p.First+1, len(mounts))] {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, err := j.transform(ctx, m, p.Steps[i])
		if err != nil {
			return nil, fmt.Errorf("mount %d: %w", i, err)
		}
		if i == p.First {
			left[0] = m
			break
		}
		m, device, writes, err := j.mount(ctx, m, i)
		if err != nil {
			return nil, fmt.Errorf("mount %d: %w", i, err)
		}
		j.made = append(j.made, activation.Active{Mount: m, MountedAt: time.Now().UTC().Round(0), MountPoint: j.point(i)})
		j.devices, j.writes = append(j.devices, device), append(j.writes, writes)
	}
	if temporary {
		return []mount.Mount{{Type: "bind", Source: j.point(len(j.made) - 1), Options: []string{"rbind"}}}, nil
	}
	return left, nil
}

// transform applies the transforms of a mount, in order: each may need what the
// one before it filled in.
func (j *job) transform(ctx context.Context, m mount.Mount, step activation.Step) (mount.Mount, error) {
	var err error
	m.Type = step.Type
	for _, word := range step.Transforms {
		switch word {
		case activation.Format:
			m, err = activation.Expand(m, j.made)
		case activation.Mkdir:
			var dirs []activation.Dir
			m, dirs, err = activation.TakeDirs(m)
			for _, d := range dirs {
				if err == nil {
					err = j.makeDir(d)
				}
			}
		case activation.Mkfs:
			var i activation.Image
			if m, i, err = activation.TakeImage(m); err == nil {
				err = j.makeImage(ctx, m.Source, i)
			}
		}
		if err != nil {
			return mount.Mount{}, err
		}
	}
	return m, nil
}

func (j *job) makeDir(d activation.Dir) error {
	parent, name, _, err := j.parent(d.Path)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := j.s.kernel.MakeDir(parent, name, d); err != nil {
		return fmt.Errorf("directory %.300q: %w", d.Path, err)
	}
	return nil
}

func (j *job) makeImage(ctx context.Context, path string, i activation.Image) error {
	parent, name, place, err := j.parent(path)
	if err != nil {
		return err
	}
	defer parent.Close()
	if !place.Image {
		return fmt.Errorf("path %.300q is not beside the tree of a snapshot: %w", path, errdefs.ErrInvalidArgument)
	}
	return j.s.kernel.MakeImage(ctx, parent, name, i)
}

// parent opens the directory in which something is to be made.
func (j *job) parent(path string) (parent *os.File, name string, p Place, err error) {
	fail := func(why any, kind error) (*os.File, string, Place, error) {
		return nil, "", Place{}, fmt.Errorf("path %.300q: %v: %w", path, why, kind)
	}
	if !filepath.IsAbs(path) || path != filepath.Clean(path) {
		return fail("not absolute and clean", errdefs.ErrInvalidArgument)
	}
	if p, err = j.place(path); err != nil {
		return nil, "", Place{}, err
	}
	defer p.Dir.Close()
	if !p.Write || p.Rest == "" {
		return fail("not in an active snapshot", errdefs.ErrInvalidArgument)
	}
	if parent, err = beneath(p.Dir, filepath.Dir(p.Rest), unix.O_DIRECTORY); err != nil {
		return fail(err, errdefs.ErrInvalidArgument)
	}
	return parent, filepath.Base(p.Rest), p, nil
}

// mount makes the i-th mount, and returns it without what was only said to us;
// the loop device, if that is what was to be made; and whether it can be written
// to.
func (j *job) mount(ctx context.Context, m mount.Mount, i int) (_ mount.Mount, dev string, writes bool, err error) {
	if m.Target != "" {
		return m, "", false, fmt.Errorf("mount with a target: %w", errdefs.ErrNotImplemented)
	}
	ids, options, err := idmap.Take(m.Options)
	if err != nil {
		return m, "", false, err
	}
	w := read(options)
	users, done, err := usersOf(m, ids)
	if err != nil {
		return m, "", false, err
	}
	defer done()
	var f *os.File
	switch m.Type {
	case "loop":
		dev, err = j.attach(ctx, m, w, i)
		return m, dev, !w.readOnly(), err
	case "erofs":
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "loop" })
		f, err = j.erofs(ctx, m, w)
	case "bind":
		f, writes, err = j.bind(m, w)
	case "overlay":
		f, writes, err = j.overlay(w, users)
	case "ext4", "xfs":
		f, err = j.block(ctx, m, w)
		writes = !w.readOnly()
	default:
		err = fmt.Errorf("mount of type %.100q: %w", m.Type, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return m, "", false, err
	}
	defer f.Close()
	if users != nil && m.Type != "overlay" {
		if err := setUsers(f, users, w.recursive); err != nil {
			return m, "", false, err
		}
	}
	if err := j.s.kernel.Mkdir(j.point(i)); err != nil {
		return m, "", false, err
	}
	return m, "", writes, j.s.kernel.Attach(f, j.point(i))
}

// attach has a loop device end with this process until there is a link to it,
// by which it is found again.
func (j *job) attach(ctx context.Context, m mount.Mount, w words, i int) (string, error) {
	if len(w.rest) > 0 {
		return "", fmt.Errorf("loop device with options %.300q: %w", w.rest, errdefs.ErrNotImplemented)
	}
	image, err := j.open(m.Source, use{write: !w.readOnly(), image: true})
	if err != nil {
		return "", err
	}
	defer image.Close()
	dev, err := loop.Attach(ctx, image, w.readOnly(), j.point(i))
	if err != nil {
		return "", err
	}
	defer dev.Close()
	if err := j.s.kernel.Link(dev.Name(), j.point(i)); err != nil {
		return "", err
	}
	return dev.Name(), j.s.kernel.Keep(dev)
}

// erofs mounts an image, and those that have its data, from their files where
// the kernel can (from 6.12), and else through loop devices.
func (j *job) erofs(ctx context.Context, m mount.Mount, w words) (*os.File, error) {
	values, others, err := w.take("erofs", "device")
	if err != nil {
		return nil, err
	}
	w.set |= unix.MOUNT_ATTR_RDONLY
	var images []*os.File
	defer func() {
		for _, f := range images {
			f.Close()
		}
	}()
	for _, path := range append([]string{m.Source}, values["device"]...) {
		f, err := j.open(path, use{image: true})
		if err != nil {
			return nil, err
		}
		images = append(images, f)
	}
	f, err := filesystem("erofs", erofsSettings(images, fdPath, others), w)
	if !errors.Is(err, unix.ENOTBLK) {
		return f, err
	}
	for i, image := range images {
		dev, err := loop.Attach(ctx, image, true, j.dir)
		if err != nil {
			return nil, err
		}
		image.Close()
		images[i] = dev
	}
	return filesystem("erofs", erofsSettings(images, (*os.File).Name, others), w)
}

func erofsSettings(images []*os.File, name func(*os.File) string, others []string) []setting {
	all := []setting{{"source", name(images[0])}}
	for _, f := range images[1:] {
		all = append(all, setting{"device", name(f)})
	}
	return append(all, settings(others)...)
}

// bind of what cannot be written to must not say that it can, unless by saying
// nothing of it: a copy of a mount could be made writable where the mount is not.
func (j *job) bind(m mount.Mount, w words) (f *os.File, writes bool, err error) {
	if len(w.rest) > 0 {
		return nil, false, fmt.Errorf("bind with options %.300q: %w", w.rest, errdefs.ErrNotImplemented)
	}
	if i, _, ok := j.own(m.Source); ok && i < len(j.writes) && !j.writes[i] && w.clear&unix.MOUNT_ATTR_RDONLY == 0 {
		w.set |= unix.MOUNT_ATTR_RDONLY
	}
	dir, err := j.open(m.Source, use{write: !w.readOnly()})
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	f, err = bind(dir, w)
	return f, !w.readOnly(), err
}

// overlay stacks directories, each as it was opened; those below with the ids of
// a user namespace, if there is one.
func (j *job) overlay(w words, users *os.File) (f *os.File, writes bool, err error) {
	values, others, err := w.take("overlay", "lowerdir", "upperdir", "workdir")
	if err != nil {
		return nil, false, err
	}
	var dirs []*os.File
	defer func() {
		for _, d := range dirs {
			d.Close()
		}
	}()
	all := []setting{{"source", "overlay"}}
	add := func(key, path string, u use) error {
		d, err := j.open(path, u)
		if err != nil {
			return err
		}
		dirs = append(dirs, d)
		if users != nil && !u.write {
			if d, err = withUsers(d, users); err != nil {
				return err
			}
			dirs = append(dirs, d)
		}
		all = append(all, setting{key, fdPath(d)})
		return nil
	}
	for _, list := range values["lowerdir"] {
		for path := range strings.SplitSeq(list, ":") {
			if err := add("lowerdir+", path, use{}); err != nil {
				return nil, false, err
			}
		}
	}
	for _, key := range []string{"upperdir", "workdir"} {
		for _, path := range values[key] {
			if err := add(key, path, use{write: true}); err != nil {
				return nil, false, err
			}
		}
	}
	f, err = filesystem("overlay", append(all, settings(others)...), w)
	if users != nil && errors.Is(err, unix.EINVAL) {
		// Before 6.15 layers have to be mounted somewhere.
		err = fmt.Errorf("%v: %w", err, errdefs.ErrNotImplemented)
	}
	return f, len(values["upperdir"]) > 0 && !w.readOnly(), err
}

// block mounts a loop device that was made before, or an image through one that
// ends with the mount.
func (j *job) block(ctx context.Context, m mount.Mount, w words) (*os.File, error) {
	_, others, err := w.take(m.Type)
	if err != nil {
		return nil, err
	}
	if i, rest, ok := j.own(m.Source); ok && rest == "" && i < len(j.devices) && j.devices[i] != "" {
		return filesystem(m.Type, append([]setting{{"source", j.devices[i]}}, settings(others)...), w)
	}
	if !w.loop {
		return nil, fmt.Errorf("mount of type %s from something else than a loop device: %w", m.Type, errdefs.ErrNotImplemented)
	}
	image, err := j.open(m.Source, use{write: !w.readOnly(), image: true})
	if err != nil {
		return nil, err
	}
	defer image.Close()
	dev, err := loop.Attach(ctx, image, w.readOnly(), j.dir)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	return filesystem(m.Type, append([]setting{{"source", dev.Name()}}, settings(others)...), w)
}
