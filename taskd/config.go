package taskd

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gantryd/gantry/services/suite"
)

// Config says where containers and bundles live and which shims run them.
type Config struct {
	Root  string `toml:"root"`  // directory for what outlives a boot
	State string `toml:"state"` // directory for bundles, which need not

	// Address is the public door. Every shim is given it verbatim, and hashes
	// it into the name of its socket: it may not change while containers run.
	Address string `toml:"address"`

	// Runtimes are the executables of runtimes that are not found by their
	// names alone: a name to look for, or an absolute path.
	Runtimes map[string]string `toml:"runtimes"`

	// ShimSockets is the directory for shims' sockets; empty leaves it to
	// each shim.
	ShimSockets string `toml:"shim_sockets"`

	// How long a start waits for the answer of a gate, and how long for
	// somebody to answer by its name.
	GateSeconds       int `toml:"gate_seconds"`
	GateAbsentSeconds int `toml:"gate_absent_seconds"`
}

// OwnShim is the executable of the suite's own shim.
const OwnShim = "containerd-shim-gantry-v1"

// shimSocketsMax is how long that directory's name is at most: 65 bytes of name
// follow, and a socket's path has 107.
const shimSocketsMax = 42

const gateSecondsMax = 600

// Default is the config of a node.
func Default() Config {
	return Config{
		Root:        "/var/lib/gantry/taskd",
		State:       "/run/gantry/taskd",
		Address:     suite.Address,
		Runtimes:    map[string]string{"io.containerd.runc.v2": OwnShim},
		ShimSockets: "/run/gantry/s",

		GateSeconds:       30,
		GateAbsentSeconds: 10,
	}
}

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	for _, p := range []struct{ name, path string }{{"root", c.Root}, {"state", c.State}, {"address", c.Address}} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: want an absolute path, not %q", p.name, p.path))
		}
	}
	if c.ShimSockets != "" && !filepath.IsAbs(c.ShimSockets) {
		errs = append(errs, fmt.Errorf("shim_sockets: want an absolute path or nothing, not %q", c.ShimSockets))
	}
	if len(c.ShimSockets) > shimSocketsMax {
		errs = append(errs, fmt.Errorf("shim_sockets: %q is longer than %d bytes, too long for a socket in it", c.ShimSockets, shimSocketsMax))
	}
	if c.GateSeconds < 1 || c.GateSeconds > gateSecondsMax {
		errs = append(errs, fmt.Errorf("gate_seconds: %d is not from 1 to %d", c.GateSeconds, gateSecondsMax))
	}
	if c.GateAbsentSeconds < 0 || c.GateAbsentSeconds > c.GateSeconds {
		errs = append(errs, fmt.Errorf("gate_absent_seconds: %d is not from 0 to the %d of gate_seconds", c.GateAbsentSeconds, c.GateSeconds))
	}
	for name, binary := range c.Runtimes {
		if name == "" || binary == "" || !filepath.IsAbs(binary) && filepath.Base(binary) != binary {
			errs = append(errs, fmt.Errorf("runtimes: %q = %q: want the name or the absolute path of an executable", name, binary))
		}
	}
	return errors.Join(errs...)
}

func (c Config) gateTime() time.Duration { return time.Duration(c.GateSeconds) * time.Second }

func (c Config) gateAbsentTime() time.Duration {
	return time.Duration(c.GateAbsentSeconds) * time.Second
}
