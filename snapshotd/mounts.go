package snapshotd

import (
	"strings"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
)

// mounts describes how to use a snapshot on top of the directories in chain.
// Where there is nothing to stack it is a bind mount.
func (s *Store) mounts(r record, chain []uint64) []mount.Mount {
	switch {
	case len(chain) == 0 && r.Kind == snapshot.View:
		return bind(s.fs(r.ID), "ro")
	case len(chain) == 0:
		return bind(s.fs(r.ID), "rw")
	case len(chain) == 1 && r.Kind == snapshot.View:
		return bind(s.fs(chain[0]), "ro")
	}
	var options []string
	if r.Kind == snapshot.Active {
		options = append(options, "workdir="+s.work(r.ID), "upperdir="+s.fs(r.ID))
	}
	lower := make([]string, len(chain))
	for i, id := range chain {
		lower[i] = s.fs(id)
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.options...)}}
}

func bind(dir, access string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{access, "rbind"}}}
}
