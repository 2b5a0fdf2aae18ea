package driver

import (
	"context"
	"os"
	"slices"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/kernel"
	"github.com/gantryd/gantry/snapshotd/layer"
)

// Whole is what drivers have in common that keep each tree whole, in a directory
// of the snapshot's, and stack nothing. A view of a parent is the parent's tree.
type Whole struct{ Dirs Dirs }

// WholeName is what the directory is called.
const WholeName = "fs"

// Path is the directory that has the tree of a snapshot.
func (w Whole) Path(id uint64) string { return w.Dirs.Path(id, WholeName) }

// Traits implements Driver.
func (w Whole) Traits() Traits { return Traits{} }

// shown is the snapshot whose directory is the tree of s.
func (w Whole) shown(s Snapshot) uint64 {
	if s.Kind == snapshot.View && len(s.Parents) > 0 {
		return s.Parents[0].ID
	}
	return s.ID
}

// Mounts implements Driver.
func (w Whole) Mounts(_ context.Context, s Snapshot) ([]mount.Mount, error) {
	access := "ro"
	if s.Kind == snapshot.Active {
		access = "rw"
	}
	return []mount.Mount{{Type: "bind", Source: w.Path(w.shown(s)), Options: []string{access, "rbind"}}}, nil
}

// Find implements Driver.
func (w Whole) Find(mounts []mount.Mount) (Found, bool) {
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return Found{}, false
	}
	id, rest, ok := w.Dirs.Of(mounts[0].Source)
	return Found{ID: id, Write: !slices.Contains(mounts[0].Options, "ro")}, ok && rest == WholeName
}

// Extract implements Driver.
func (w Whole) Extract(_ context.Context, s Snapshot, _ bool) (layer.Target, func() error, error) {
	own, err := w.Dirs.Open(s.ID, WholeName)
	if err != nil {
		return layer.Target{}, nil, err
	}
	return layer.Target{Own: own, Rootless: kernel.InUserNamespace()}, own.Close, nil
}

// Tree implements Driver.
func (w Whole) Tree(_ context.Context, s Snapshot) (*os.File, error) {
	return w.Dirs.Open(w.shown(s), WholeName)
}

// IDs implements Driver.
func (w Whole) IDs(context.Context) ([]uint64, error) { return w.Dirs.IDs() }

// Has implements Driver.
func (w Whole) Has(_ context.Context, s Snapshot) bool { return w.Dirs.Has(s.ID, WholeName) }
