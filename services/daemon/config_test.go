package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type engineConfig struct {
	Root string `toml:"root"`
	Size int    `toml:"size_max"`
}

func (c engineConfig) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Root) {
		errs = append(errs, fmt.Errorf("root: %q is not an absolute path", c.Root))
	}
	if c.Size < 1 {
		errs = append(errs, errors.New("size_max: want at least 1"))
	}
	return errors.Join(errs...)
}

type testConfig struct {
	Common
	engineConfig
}

func (c testConfig) Check() error {
	return errors.Join(c.Common.Check(), c.engineConfig.Check())
}

func defaults() testConfig {
	return testConfig{Default(), engineConfig{Root: "/var/lib/gantry/testd", Size: 10}}
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "testd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsAreGood(t *testing.T) {
	cfg := defaults()
	if err := cfg.Check(); err != nil {
		t.Error(err)
	}
	if err := Configure(&cfg, "no-such-daemon", nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("without a file: %v", err)
	}
	if cfg != defaults() {
		t.Errorf("without a file: got %+v, want the defaults", cfg)
	}
}

func TestConfigOverridesDefaults(t *testing.T) {
	cfg := defaults()
	path := file(t, "sockets = '/tmp/s'\nsize_max = 20\nlog_level = 'debug'\n")
	var out bytes.Buffer
	log := newLog(&out)
	derived := log.With("daemon", "testd")
	derived.Debug("early")
	if err := Configure(&cfg, "testd", []string{"-config", path}, log); err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Sockets, want.Size, want.LogLevel = "/tmp/s", 20, "debug"
	if cfg != want {
		t.Errorf("got %+v, want %+v", cfg, want)
	}
	derived.Debug("late")
	if got := out.String(); strings.Contains(got, "early") || !strings.Contains(got, "late") {
		t.Errorf("log_level did not take effect: %s", got)
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	path := file(t, "root = 'relative'\ncolour = 'red'\nsockets = 'here'\nsize_max = 0\nlog_level = 'loud'\nmemory_limit_mib = -1\n[table]\nx = 1\n")
	cfg := defaults()
	err := Configure(&cfg, "testd", []string{"-config", path, "-check"}, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		path + `:2: unknown key "colour"`,
		path + `:7: unknown key "table`,
		`root: "relative" is not an absolute path`,
		`sockets: "here" is not an absolute path`,
		`log_level: "loud" is not one of debug, info, warn, error`,
		`size_max: want at least 1`,
		`memory_limit_mib: -1 is not a size`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant also %s", err, want)
		}
	}
}

func TestConfigThatDoesNotParseNamesFileAndLine(t *testing.T) {
	for _, text := range []string{"root = '/x'\nsize_max = 'many'\n", "root = '/x'\nsize_max = = 3\n", "root = '/x'\nroot = '/y'\n"} {
		path := file(t, text)
		cfg := defaults()
		err := Configure(&cfg, "testd", []string{"-config", path}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.HasPrefix(err.Error(), path+":2: ") {
			t.Errorf("%q: got %v, want an error in line 2", text, err)
		}
	}
}

func TestFlags(t *testing.T) {
	good := file(t, "")
	for _, c := range []struct {
		args []string
		want error
	}{
		{[]string{"-config", good, "-check"}, ErrChecked},
		{[]string{"-version"}, ErrChecked},
		{[]string{"-help"}, ErrChecked},
		{[]string{"-config", good}, nil},
	} {
		cfg := defaults()
		if err := Configure(&cfg, "testd", c.args, slog.New(slog.DiscardHandler)); err != c.want {
			t.Errorf("%q: got %v, want %v", c.args, err, c.want)
		}
	}
	for _, args := range [][]string{{"-config", "/no/such/file"}, {"-colour"}, {"extra"}, {"-config", t.TempDir()}} {
		cfg := defaults()
		if err := Configure(&cfg, "testd", args, slog.New(slog.DiscardHandler)); err == nil || errors.Is(err, ErrChecked) {
			t.Errorf("%q: got %v, want an error", args, err)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {ErrChecked, 0}, {errors.New("no"), 1}, {context.Canceled, 1},
	} {
		if got := code("testd", nil, func(context.Context, *slog.Logger, []string) error { return c.err }); got != c.want {
			t.Errorf("run returns %v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("root = '/x'\nsize_max = 3\n")
	f.Add("[a.b]\nc = 1\n[[d]]\n")
	f.Add("sockets = '\\u0000'")
	f.Add("root.x = 1")
	f.Fuzz(func(t *testing.T, text string) {
		cfg := defaults()
		if err := decode(&cfg, "testd.toml", []byte(text)); err != nil {
			return
		}
		if err := cfg.Check(); err != nil {
			t.Errorf("%q was taken, and is wrong: %v", text, err)
		}
	})
}
