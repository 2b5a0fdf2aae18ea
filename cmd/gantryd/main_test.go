package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/suite"
)

func TestEveryDaemonHasARecipe(t *testing.T) {
	for _, d := range suite.Daemons {
		if daemons[d.Name] == nil {
			t.Errorf("%s has none", d.Name)
		}
	}
	if len(daemons) != len(suite.Daemons) {
		t.Errorf("%d recipes, want %d", len(daemons), len(suite.Daemons))
	}
}

func TestEveryConfigIsChecked(t *testing.T) {
	for name, run := range daemons {
		file := func(text string) string {
			path := filepath.Join(t.TempDir(), name+".toml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		check := func(path string) error {
			return run(t.Context(), slog.New(slog.DiscardHandler), []string{"-check", "-config", path})
		}
		if err := check(file("")); !errors.Is(err, daemon.ErrChecked) {
			t.Errorf("%s: the defaults: %v", name, err)
		}
		path := file("log_level = 'info'\nno_such_key = 1\nsockets = 'relative'\n")
		err := check(path)
		for _, want := range []string{path + `:2: unknown key "no_such_key"`, `sockets: "relative"`} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want also %s", name, err, want)
			}
		}
	}
}
