package netd

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/suite"
)

// A Config says where netd lives, and where networks and plugins are.
type Config struct {
	Root  string `toml:"root"`  // directory of the records of attachments
	State string `toml:"state"` // directory of what does not outlive a boot

	// Networks are directories of CNI's *.conflist files, those that
	// containers may be connected to. Of two networks of one name the first
	// directory's counts.
	Networks []string `toml:"networks"`

	// Plugins are the directories of CNI's plugins.
	Plugins []string `toml:"plugins"`
}

// Default is the config of a node that runs the suite under systemd. It does
// not look into /etc/cni/net.d: what is there is for whoever put it there, and
// a client could ask for it by name.
func Default() Config {
	return Config{
		Root:     "/var/lib/gantry/netd",
		State:    network.Dir(suite.Sockets),
		Networks: []string{"/etc/gantry/networks"},
		Plugins:  []string{"/opt/cni/bin", "/usr/lib/cni"},
	}
}

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	absolute := func(key, path string) {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", key, path))
		}
	}
	absolute("root", c.Root)
	absolute("state", c.State)
	for _, dir := range c.Networks {
		absolute("networks", dir)
	}
	for _, dir := range c.Plugins {
		absolute("plugins", dir)
	}
	if len(c.Networks) == 0 {
		errs = append(errs, errors.New("networks: want at least one directory"))
	}
	if len(c.Plugins) == 0 {
		errs = append(errs, errors.New("plugins: want at least one directory"))
	}
	return errors.Join(errs...)
}
