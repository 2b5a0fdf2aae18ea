package eventbus

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Config says what is kept and who is told.
type Config struct {
	Root        string   `toml:"root"`         // directory of the stream
	RetainHours int      `toml:"retain_hours"` // events older than this go
	RetainMiB   int      `toml:"retain_mib"`   // the oldest events go when all are larger
	Plugins     []Plugin `toml:"plugins"`      // who else may follow events
	TCP         TCP      `toml:"tcp"`          // where plugins connect that have a key
	Leaf        Leaf     `toml:"leaf"`         // the fleet that is told of events
}

// Default is the config of a node that runs the suite under systemd.
func Default() Config {
	return Config{
		Root:        "/var/lib/gantry/eventbus",
		RetainHours: 72,
		RetainMiB:   64,
		Plugins:     []Plugin{{Name: "dnsd", User: "gantry-dns", Subscribe: []string{"gantry.v1.*.containers.>", "gantry.v1.*.tasks.>"}}},
	}
}

const (
	retainHoursMax = 24 * 366
	retainMiBMin   = 4 // of which a message is at most a quarter
	retainMiBMax   = 1 << 20
)

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Root) {
		errs = append(errs, fmt.Errorf("root: %q is not an absolute path", c.Root))
	}
	if c.RetainHours < 1 || c.RetainHours > retainHoursMax {
		errs = append(errs, fmt.Errorf("retain_hours: %d is not from 1 to %d", c.RetainHours, retainHoursMax))
	}
	if c.RetainMiB < retainMiBMin || c.RetainMiB > retainMiBMax {
		errs = append(errs, fmt.Errorf("retain_mib: %d is not from %d to %d", c.RetainMiB, retainMiBMin, retainMiBMax))
	}
	errs = append(errs, c.TCP.check(), c.Leaf.check(), checkPlugins(c.Plugins, c.TCP))
	return errors.Join(errs...)
}

func (c Config) retainTime() time.Duration { return time.Duration(c.RetainHours) * time.Hour }

func (c Config) retainBytes() int64 { return int64(c.RetainMiB) << 20 }
