package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/mounter"
)

// Activations returns the service that makes mounts.
func (s *Store) Activations() activation.Stores { return s.mounter }

// Unmount undoes mounts that nobody has any more, until ctx ends. It is a work of
// the daemon.
func (s *Store) Unmount(ctx context.Context) error { return s.mounter.Collect(ctx) }

func (s *Store) openMounter() (err error) {
	s.mounter, err = mounter.Open(filepath.Join(s.cfg.State, "mounts"), mounter.Needs{
		Records: s.db, Leases: s.needs.Leases, Members: memberRows{}, Places: places{s}, Log: s.log, FreeMin: s.cfg.freeMin(),
		Hidden: func(ns, name string) bool {
			return s.gate.Hidden(gc.Node{Namespace: ns, Resource: mounter.Resource(name)})
		},
	})
	return err
}

// memberRows are the resources of leases, for activations.
type memberRows struct{}

func (memberRows) Join(tx *kv.Tx, ns string, l lease.Ref, r lease.Resource) error {
	return join(tx, ns, l, r)
}

func (memberRows) Leave(tx *kv.Tx, ns, id string, r lease.Resource) error {
	return leave(tx, ns, id, r)
}

// snapshotsDir is where each snapshotter has its trees, below its directory.
const snapshotsDir = "snapshots"

// places are the snapshots as mounts find them.
type places struct{ s *Store }

// Place implements mounter.Places. A snapshot is in the directory of its id, below
// that of its snapshotter; whose it is, the records say.
func (p places) Place(ns, path string) (mounter.Place, error) {
	rel, ok := strings.CutPrefix(path, p.s.cfg.Root+"/")
	if !ok {
		return mounter.Place{}, fmt.Errorf("path %.300q is in no snapshot here: %w", path, errdefs.ErrNotImplemented)
	}
	refused := fmt.Errorf("path %.300q is in no snapshot of the namespace: %w", path, errdefs.ErrInvalidArgument)
	parts := strings.SplitN(rel, "/", 4) // <snapshotter>/snapshots/<id>/<rest>
	if len(parts) < 3 {
		return mounter.Place{}, refused
	}
	id, err := strconv.ParseUint(parts[2], 10, 64)
	if err != nil || strconv.FormatUint(id, 10) != parts[2] || parts[1] != snapshotsDir {
		return mounter.Place{}, refused
	}
	var place mounter.Place
	if err := p.s.db.View(func(tx *kv.Tx) error {
		var o owner
		if err := tx.GetJSON(dirKey(id), &o); errors.Is(err, errdefs.ErrNotFound) {
			return refused
		} else if err != nil {
			return err
		}
		d, ok := p.s.drivers[o.Snapshotter]
		if o.Namespace != ns || o.Snapshotter != parts[0] || !ok {
			return refused
		}
		r, err := o.shelf().get(tx, o.Name)
		beside := d.Traits().Beside
		kept := len(parts) == 4 && slices.Contains(d.Traits().Kept, parts[3])
		// Whoever could write to the directory itself could write the images.
		place.Write = r.Kind == snapshot.Active && (!beside || len(parts) != 3) && !kept
		place.Image = beside && len(parts) == 4 && !strings.Contains(parts[3], "/")
		return err
	}); err != nil {
		return mounter.Place{}, err
	}
	place.Rest = strings.Join(parts[3:], "")
	// From here on down: what a snapshotter has may be on a file system of its own,
	// mounted at its directory.
	all, err := os.OpenFile(filepath.Join(p.s.rootOf(parts[0]), snapshotsDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return mounter.Place{}, err
	}
	defer all.Close()
	if place.Dir, err = mounter.Beneath(all, parts[2]); err != nil {
		return mounter.Place{}, fmt.Errorf("%w (%v)", refused, err)
	}
	return place, nil
}
