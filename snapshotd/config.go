package snapshotd

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/snapshotd/layer"
)

// Config says where snapshots live and how hard the machine is used.
type Config struct {
	Root       string `toml:"root"`         // directory for everything this daemon keeps
	Applies    int    `toml:"applies"`      // layers that are extracted at once
	FreeMinMiB int64  `toml:"free_min_mib"` // free disk that layers leave alone
}

// Default is the config of a node.
func Default() Config {
	return Config{Root: "/var/lib/gantry/snapshotd", Applies: 4, FreeMinMiB: 256}
}

// rootMax is how long the root's path is at most, in bytes: the kernel takes
// 255 for a directory of an overlay.
const rootMax = 180

// freeMinLeast is what the database needs to go on, in MiB.
const freeMinLeast = 64

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	switch {
	case !filepath.IsAbs(c.Root) || c.Root != filepath.Clean(c.Root):
		errs = append(errs, fmt.Errorf("root: %q is not a clean absolute path", c.Root))
	case len(c.Root) > rootMax:
		errs = append(errs, fmt.Errorf("root: longer than %d bytes", rootMax))
	case strings.ContainsAny(c.Root, ",:\\\"\n"):
		// These mean something in the options of a mount.
		errs = append(errs, fmt.Errorf(`root: %q has one of , : \ " or a line break in it`, c.Root))
	}
	if c.Applies < 1 || c.Applies > 1000 {
		errs = append(errs, fmt.Errorf("applies: %d is not from 1 to 1000", c.Applies))
	}
	if c.FreeMinMiB < freeMinLeast || c.FreeMinMiB > 1<<30 {
		errs = append(errs, fmt.Errorf("free_min_mib: %d is not from %d to %d", c.FreeMinMiB, freeMinLeast, 1<<30))
	}
	return errors.Join(errs...)
}

// freeMin is at how many bytes of free disk a layer stops, so that what is to
// be left alone is, when all of them reach it at once.
func (c Config) freeMin() int64 { return c.FreeMinMiB<<20 + int64(c.Applies)*layer.Overshoot }
