package snapshotd

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/snapshotd/btrfs"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/erofs"
	"github.com/gantryd/gantry/snapshotd/native"
	"github.com/gantryd/gantry/snapshotd/overlayfs"
)

// openers are the snapshotters, each with the directory of its name below the
// root.
var openers = map[string]func(root string, cfg Config, env driver.Env) (driver.Driver, error){
	Overlayfs: func(root string, cfg Config, env driver.Env) (driver.Driver, error) {
		return overlayfs.Open(root, cfg.Overlayfs, env)
	},
	"native": func(root string, _ Config, env driver.Env) (driver.Driver, error) { return native.Open(root, env) },
	"btrfs":  func(root string, _ Config, env driver.Env) (driver.Driver, error) { return btrfs.Open(root, env) },
	"erofs":  func(root string, _ Config, env driver.Env) (driver.Driver, error) { return erofs.Open(root, env) },
}

// load opens the drivers. One that cannot be keeps nobody from the others.
func (s *Store) load(env driver.Env) {
	for _, name := range slices.Sorted(maps.Keys(openers)) {
		d, err := openers[name](s.rootOf(name), s.cfg, env)
		if err == nil {
			err = s.disk.Mkdir(filepath.Join(s.rootOf(name), notesDir), 0o700)
		}
		if err != nil {
			s.log.Warn("a snapshotter is missing here", "snapshotter", name, "err", err)
			s.skipped[name] = err
			continue
		}
		s.drivers[name] = d
	}
}

func (s *Store) rootOf(snapshotter string) string { return filepath.Join(s.cfg.Root, snapshotter) }

// driver returns the driver of a snapshotter.
func (s *Store) driver(snapshotter string) (driver.Driver, error) {
	if d, ok := s.drivers[snapshotter]; ok {
		return d, nil
	}
	if e, ok := s.externals[snapshotter]; ok {
		return e, nil
	}
	return nil, fmt.Errorf("snapshotter not loaded: %s: %w", snapshotter, errdefs.ErrInvalidArgument)
}

// In implements snapshot.Stores.
func (s *Store) In(scope namespace.Scope, snapshotter string) (snapshot.Store, error) {
	d, err := s.driver(snapshotter)
	if err != nil {
		return nil, err
	}
	n := snapshots{s: s, scope: scope, d: d, shelf: shelf{snapshotter, scope.Name}}
	if e, ok := d.(*external); ok {
		return outside{n, e}, nil
	}
	return n, nil
}

// Layers returns the service that extracts layers into snapshots.
func (s *Store) Layers() diff.Services { return layers{s} }

// Plugins describe the daemon in containerd's terms.
func (s *Store) Plugins() []suite.Plugin {
	// Clients ask the snapshotter which platforms may be unpacked.
	here := []string{platforms.Format(platforms.DefaultSpec())}
	var all []suite.Plugin
	for _, name := range slices.Sorted(maps.Keys(openers)) {
		p := suite.Plugin{
			Type: "io.containerd.snapshotter.v1", ID: name, Platforms: here,
			Exports: map[string]string{"root": s.rootOf(name)},
		}
		if d, ok := s.drivers[name]; ok {
			p.Capabilities = capabilities(d.Traits())
		} else {
			p.Skip = s.skipped[name].Error()
		}
		all = append(all, p)
	}
	all = append(all, s.proxyPlugins()...)
	return append(all,
		suite.Plugin{Type: "io.containerd.differ.v1", ID: "walking", Platforms: here},
		suite.Plugin{Type: "io.containerd.mount-handler.v1", ID: "erofs", Platforms: here},
		suite.Plugin{Type: "io.containerd.mount-manager.v1", ID: "bolt"},
		suite.Plugin{Type: "io.containerd.service.v1", ID: "snapshots-service"},
		suite.Plugin{Type: "io.containerd.service.v1", ID: "diff-service"},
		suite.Plugin{Type: "io.containerd.grpc.v1", ID: "snapshots"},
		suite.Plugin{Type: "io.containerd.grpc.v1", ID: "diff"},
		suite.Plugin{Type: "io.containerd.grpc.v1", ID: "mounts"},
	)
}

// capabilities are traits in containerd's words.
func capabilities(t driver.Traits) (words []string) {
	if t.Rebase {
		words = append(words, "rebase")
	}
	if t.RemapIDs {
		words = append(words, "remap-ids")
	}
	if t.NoChown {
		words = append(words, "only-remap-ids")
	}
	return words
}
