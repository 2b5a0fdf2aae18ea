package overlayfs

import (
	"slices"
	"strings"

	"github.com/gantryd/gantry/services/idmap"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// mounts describes how to use a snapshot on top of its parents. Where there is
// nothing to stack it is a bind mount. With a container's ids, whoever mounts it
// maps those of the files below; in an overlay, what is above has the host's.
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
	case len(s.Parents) == 1 && s.Kind == snapshot.View:
		return bind(d.fs(s.Parents[0].ID), "ro", options), nil
	}
	if s.Kind == snapshot.Active {
		options = append(options, "workdir="+d.work(s.ID), "upperdir="+d.fs(s.ID))
		if d.cfg.Volatile {
			options = append(options, volatileOption)
		}
	}
	lower := make([]string, len(s.Parents))
	for i, p := range s.Parents {
		lower[i] = d.fs(p.ID)
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, d.options...)}}, nil
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

// Find implements driver.Driver. An overlay of an upper directory alone says that
// the layers below are to come later (a rebase).
func (d *Driver) Find(mounts []mount.Mount) (driver.Found, bool) {
	var f driver.Found
	if len(mounts) != 1 {
		return f, false
	}
	m := mounts[0]
	dir := ""
	switch m.Type {
	case "bind":
		dir, f.Write = m.Source, true
	case "overlay":
		f.Alone = true
		lower := ""
		for _, o := range m.Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				dir, f.Write = upper, true
			}
			if below, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lower, _, _ = strings.Cut(below, ":")
				f.Alone = false
			}
		}
		if dir == "" {
			dir = lower
		}
	}
	f.Write = f.Write && !slices.Contains(m.Options, "ro")
	id, rest, ok := d.dirs.Of(dir)
	f.ID = id
	return f, ok && rest == "fs"
}
