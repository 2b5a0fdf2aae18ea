package imaged

import (
	"fmt"
	"path/filepath"
)

// Config says where records live. Its zero value is not usable; see [Default].
type Config struct {
	Root string `toml:"root"` // directory for everything this daemon keeps
}

// Default is the config of a node that runs the suite under systemd.
func Default() Config { return Config{Root: "/var/lib/gantry/imaged"} }

// Check reports every mistake in c at once.
func (c Config) Check() error {
	if !filepath.IsAbs(c.Root) {
		return fmt.Errorf("root: %q is not an absolute path", c.Root)
	}
	return nil
}
