package daemon

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/gantryd/gantry/services/suite"
)

// A Common is what every daemon's config file may say besides its own.
type Common struct {
	Sockets     string `toml:"sockets"`          // directory of every daemon's socket
	Group       string `toml:"group"`            // owns this daemon's sockets; empty is the process's
	LogLevel    string `toml:"log_level"`        // "debug", "info", "warn" or "error"
	Metrics     bool   `toml:"metrics"`          // serve Prometheus metrics on <sockets>/<daemon>.metrics.sock
	MemoryLimit int64  `toml:"memory_limit_mib"` // of Go's heap, above which it collects harder; 0 is none
}

// groupDefault owns the sockets of a node on which it exists. On another they
// are the process's.
const groupDefault = "gantry"

// Default is the config of a node that runs the suite under systemd.
func Default() Common {
	return Common{Sockets: suite.Sockets, Group: groupDefault, LogLevel: "info", MemoryLimit: 128}
}

// Check reports every mistake in c at once.
func (c Common) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Sockets) {
		errs = append(errs, fmt.Errorf("sockets: %q is not an absolute path", c.Sockets))
	}
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	if c.MemoryLimit < 0 || c.MemoryLimit > math.MaxInt64>>20 {
		errs = append(errs, fmt.Errorf("memory_limit_mib: %d is not a size", c.MemoryLimit))
	}
	return errors.Join(errs...)
}

func (c Common) level() (slog.Level, error) {
	switch c.LogLevel {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log_level: %q is not one of debug, info, warn, error", c.LogLevel)
}

func (c Common) common() Common { return c }

// A Config is a pointer to a struct in which Common is embedded.
type Config interface {
	// Check reports every mistake at once, those of Common among them.
	Check() error

	common() Common
}

// ErrChecked says that only a report was asked for (-check, -version, -help),
// and that all is well. Main exits 0 on it.
var ErrChecked = errors.New("config is good")

// Configure fills cfg, a pointer to a struct with its defaults, from the file
// that args name with -config (default /etc/gantry/<name>.toml, which may be
// missing), and checks it. Every mistake is reported at once, and an unknown
// key with file and line. With -check it reports and returns [ErrChecked].
//
// It applies what the process itself is told: the level of log, if log is
// Main's, and the memory limit, unless GOMEMLIMIT is set.
func Configure(cfg Config, name string, args []string, log *slog.Logger) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	file := flags.String("config", filepath.Join("/etc/gantry", name+".toml"), "read the config from `file`")
	check := flags.Bool("check", false, "check the config and exit")
	version := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return ErrChecked
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("argument %q is too many; see -help", flags.Arg(0))
	case *version:
		fmt.Println(name, Version())
		return ErrChecked
	}
	given := false
	flags.Visit(func(f *flag.Flag) { given = given || f.Name == "config" })

	if err := read(cfg, *file, given); err != nil {
		return err
	}
	if *check {
		fmt.Println(name+":", ErrChecked)
		return ErrChecked
	}
	c := cfg.common()
	if level, err := c.level(); err == nil {
		setLevel(log, level)
	}
	if c.MemoryLimit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(c.MemoryLimit << 20)
	}
	return nil
}

// read fills cfg from a file, which may be missing unless it was given, and
// checks it.
func read(cfg Config, file string, given bool) error {
	b, err := os.ReadFile(file)
	if err != nil && (given || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("config: %w", err)
	}
	return decode(cfg, file, b)
}

// decode fills cfg from the text b of a file, and checks it.
func decode(cfg Config, file string, b []byte) error {
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err := d.Decode(cfg)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	var mistakes []error
	switch {
	case errors.As(err, &unknown):
		// What is known was read all the same, and is checked too.
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			mistakes = append(mistakes, fmt.Errorf("%s:%d: unknown key %q", file, row, strings.Join(e.Key(), ".")))
		}
	case errors.As(err, &wrong):
		row, _ := wrong.Position()
		return fmt.Errorf("%s:%d: %s", file, row, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := cfg.Check(); err != nil {
		mistakes = append(mistakes, fmt.Errorf("%s: %w", file, err))
	}
	return errors.Join(mistakes...)
}
