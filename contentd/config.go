package contentd

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// Config says where blobs live. Its zero value is not usable; see [Default].
type Config struct {
	Root        string          `toml:"root"`         // directory for everything this daemon keeps
	FreeMinMiB  int64           `toml:"free_min_mib"` // free disk below which nothing is written
	IngestHours int             `toml:"ingest_hours"` // how long an ingest is kept that nobody writes and no lease protects
	Sharing     content.Sharing `toml:"sharing"`      // which blobs of other namespaces need not be written again

	BackupMinutes int    `toml:"backup_minutes"`      // how often the records are backed up, if they have changed
	Recovered     string `toml:"recovered_namespace"` // whose blobs are that nobody is known to have, when the records were lost
}

// freeMinLeast is what the database needs.
const freeMinLeast = 64

// Default is the config of a node that runs the suite under systemd.
func Default() Config {
	return Config{
		Root: "/var/lib/gantry/contentd", FreeMinMiB: 256, IngestHours: 24, Sharing: content.Shared,
		BackupMinutes: 60, Recovered: "recovered",
	}
}

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Root) {
		errs = append(errs, fmt.Errorf("root: %q is not an absolute path", c.Root))
	}
	if c.FreeMinMiB < freeMinLeast || c.FreeMinMiB > 1<<30 {
		errs = append(errs, fmt.Errorf("free_min_mib: %d is not from %d to %d", c.FreeMinMiB, freeMinLeast, 1<<30))
	}
	if c.IngestHours < 1 || c.IngestHours > 24*365 {
		errs = append(errs, fmt.Errorf("ingest_hours: %d is not from 1 to a year's", c.IngestHours))
	}
	if err := c.Sharing.Check(); err != nil {
		errs = append(errs, fmt.Errorf("sharing: %w", err))
	}
	if c.BackupMinutes < 1 || c.BackupMinutes > 60*24*365 {
		errs = append(errs, fmt.Errorf("backup_minutes: %d is not from 1 to a year's", c.BackupMinutes))
	}
	if err := (namespace.Scope{Name: c.Recovered}).Check(); err != nil {
		errs = append(errs, fmt.Errorf("recovered_namespace: %w", err))
	}
	return errors.Join(errs...)
}

func (c Config) freeMin() int64 { return c.FreeMinMiB << 20 }

func (c Config) ingestAge() time.Duration { return time.Duration(c.IngestHours) * time.Hour }

func (c Config) backupEvery() time.Duration { return time.Duration(c.BackupMinutes) * time.Minute }
