package snapshotd

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/snapshotd/layer"
	"github.com/gantryd/gantry/snapshotd/overlayfs"
)

// Config says where snapshots live and how hard the machine is used.
type Config struct {
	Root       string `toml:"root"`         // directory for everything this daemon keeps
	State      string `toml:"state"`        // directory for mounts, which end with the boot
	Applies    int    `toml:"applies"`      // layers that are extracted, and made, at once
	FreeMinMiB int64  `toml:"free_min_mib"` // free disk that layers leave alone

	BackupMinutes int `toml:"backup_minutes"` // how often the records are backed up, if they have changed

	Overlayfs overlayfs.Config `toml:"overlayfs"`

	Proxies map[string]Proxy `toml:"proxy"` // external snapshotters, by name
}

// Default is the config of a node.
func Default() Config {
	return Config{Root: "/var/lib/gantry/snapshotd", State: "/run/gantry/snapshotd", Applies: 4, FreeMinMiB: 256, BackupMinutes: 60}
}

// rootMax is how long those paths are at most, in bytes: the kernel takes
// 255 for a directory of an overlay.
const rootMax = 180

// freeMinLeast is what the database needs to go on, in MiB.
const freeMinLeast = 64

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	for _, p := range []struct{ name, path string }{{"root", c.Root}, {"state", c.State}} {
		switch {
		case !filepath.IsAbs(p.path) || p.path != filepath.Clean(p.path):
			errs = append(errs, fmt.Errorf("%s: %q is not a clean absolute path", p.name, p.path))
		case len(p.path) > rootMax:
			errs = append(errs, fmt.Errorf("%s: longer than %d bytes", p.name, rootMax))
		case strings.ContainsAny(p.path, ",:\\\"\n"):
			// These mean something in the options of a mount.
			errs = append(errs, fmt.Errorf(`%s: %q has one of , : \ " or a line break in it`, p.name, p.path))
		}
	}
	if c.Applies < 1 || c.Applies > 1000 {
		errs = append(errs, fmt.Errorf("applies: %d is not from 1 to 1000", c.Applies))
	}
	if c.FreeMinMiB < freeMinLeast || c.FreeMinMiB > 1<<30 {
		errs = append(errs, fmt.Errorf("free_min_mib: %d is not from %d to %d", c.FreeMinMiB, freeMinLeast, 1<<30))
	}
	if c.BackupMinutes < 1 || c.BackupMinutes > 60*24*365 {
		errs = append(errs, fmt.Errorf("backup_minutes: %d is not from 1 to a year's", c.BackupMinutes))
	}
	return errors.Join(append(errs, c.Overlayfs.Check(), c.checkProxies())...)
}

// freeMin is at how many bytes of free disk a layer stops, so that what is to
// be left alone is, when all of them reach it at once.
func (c Config) freeMin() int64 { return c.FreeMinMiB<<20 + int64(c.Applies)*layer.Overshoot }
