package gatewayd

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/gantryd/gantry/services/suite"
)

// Config says where clients find the suite.
type Config struct {
	Root        string   `toml:"root"`         // directory for everything this daemon keeps
	Address     string   `toml:"address"`      // socket of the public door; every shim is given it, so it does not change while containers run
	Also        []string `toml:"also"`         // further sockets of the door, as /run/containerd/containerd.sock
	HoldSeconds int      `toml:"hold_seconds"` // how long a call waits for a daemon that is away
}

// Default is the config of a node.
func Default() Config {
	return Config{Root: "/var/lib/gantry/gatewayd", Address: suite.Address, HoldSeconds: 8}
}

// holdMax bounds how long a client can hang.
const holdMax = 5 * time.Minute

// Hold returns how long a call waits for a daemon that is away.
func (c Config) Hold() time.Duration { return time.Duration(c.HoldSeconds) * time.Second }

// Addresses returns every socket of the door, the public address first.
func (c Config) Addresses() []string { return append([]string{c.Address}, c.Also...) }

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Root) {
		errs = append(errs, fmt.Errorf("root: %q is not an absolute path", c.Root))
	}
	for i, path := range c.Addresses() {
		key := "address"
		if i > 0 {
			key = "also"
		}
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", key, path))
		}
		if slices.Contains(c.Addresses()[:i], path) {
			errs = append(errs, fmt.Errorf("also: %q is there twice", path))
		}
	}
	if c.HoldSeconds < 0 || c.HoldSeconds > int(holdMax/time.Second) {
		errs = append(errs, fmt.Errorf("hold_seconds: want 0 to %d", int(holdMax/time.Second)))
	}
	return errors.Join(errs...)
}
