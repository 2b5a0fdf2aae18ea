package snapshotd

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Config says where snapshots live and how hard the machine is used.
type Config struct {
	Root    string `toml:"root"`         // directory for everything this daemon keeps
	Applies int    `toml:"applies"`      // layers that are extracted at once
	FreeMin int64  `toml:"free_min_mib"` // free disk that layers leave alone
}

// Default is the config of a node.
func Default() Config {
	return Config{Root: "/var/lib/gantry/snapshotd", Applies: 4, FreeMin: 256}
}

// rootMax is how long the root's path is at most, in bytes: the kernel takes
// 255 for a directory of an overlay.
const rootMax = 180

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
	if c.Applies < 1 {
		errs = append(errs, fmt.Errorf("applies: %d is not a number of layers", c.Applies))
	}
	if c.FreeMin < 0 {
		errs = append(errs, fmt.Errorf("free_min_mib: %d is not a size", c.FreeMin))
	}
	return errors.Join(errs...)
}
