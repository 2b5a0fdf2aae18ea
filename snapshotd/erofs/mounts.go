package erofs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// stackedType is an overlay whose options say "the place where the n-th mount
// is" instead of paths. Whoever makes the mounts knows them: for containerd's
// clients that is the Mounts service.
const stackedType = "format/overlay"

// mounts describes how to use a snapshot: where there is nothing to stack it is
// a bind mount or one image, and else the images and what stacks them. With a
// container's ids, whoever makes the last mount maps those of the files below.
func (d *Driver) mounts(s driver.Snapshot) ([]mount.Mount, error) {
	ids, err := d.ids(s)
	if err != nil {
		return nil, err
	}
	options := ids.Options()
	switch {
	case len(s.Parents) == 0 && s.Kind == snapshot.View:
		return bind(d.fs(s.ID), "ro", options), nil
	case len(s.Parents) == 0:
		return bind(d.fs(s.ID), "rw", options), nil
	}
	all := make([]mount.Mount, 0, len(s.Parents)+1)
	for _, p := range s.Parents {
		all = append(all, mount.Mount{Type: "erofs", Source: d.imagePath(p.ID), Options: slices.Clone(d.image)})
	}
	if len(s.Parents) == 1 && s.Kind == snapshot.View {
		all[0].Options = append(all[0].Options, options...)
		return all, nil
	}
	if s.Kind == snapshot.Active {
		options = append(options, "workdir="+d.work(s.ID), "upperdir="+d.fs(s.ID))
	}
	lower := "lowerdir={{ mount 0 }}"
	if last := len(s.Parents) - 1; last > 0 {
		lower = fmt.Sprintf("lowerdir={{ overlay 0 %d }}", last)
	}
	options = append(options, lower)
	return append(all, mount.Mount{Type: stackedType, Source: "overlay", Options: append(options, d.options...)}), nil
}

func bind(dir, access string, options []string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: append(options, access, "rbind")}}
}

// ids are those that a snapshot is used with. Where the kernel cannot map them,
// they are the files' own.
func (d *Driver) ids(s driver.Snapshot) (idmap.Map, error) {
	if !d.mapsIDs {
		return idmap.Map{}, nil
	}
	return snapshot.IDs(s.Labels)
}

// Find implements driver.Driver. A snapshot without parents may get some later:
// nobody who gives out its mounts says whether it will, so that it is always
// taken for one that does.
func (d *Driver) Find(mounts []mount.Mount) (driver.Found, bool) {
	if len(mounts) == 0 {
		return driver.Found{}, false
	}
	m := mounts[len(mounts)-1]
	switch {
	case m.Type == "bind" && len(mounts) == 1:
		return d.find(m.Source, "fs", driver.Found{Write: !slices.Contains(m.Options, "ro"), Alone: true})
	case m.Type == "erofs" && len(mounts) == 1:
		return d.find(m.Source, imageName, driver.Found{})
	case m.Type != stackedType && m.Type != "overlay":
		return driver.Found{}, false
	}
	for _, o := range m.Options {
		if upper, is := strings.CutPrefix(o, "upperdir="); is {
			return d.find(upper, "fs", driver.Found{Write: !slices.Contains(m.Options, "ro"), Alone: len(mounts) == 1})
		}
	}
	return d.find(mounts[0].Source, imageName, driver.Found{})
}

// find completes f with the snapshot that path is in, as what is called want.
func (d *Driver) find(path, want string, f driver.Found) (driver.Found, bool) {
	id, rest, ok := d.dirs.Of(path)
	f.ID = id
	return f, ok && rest == want
}
