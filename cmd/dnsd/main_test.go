package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/gantryd/gantry/dnsd"
	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/suite"
)

func TestConfigFileShowsEveryDefault(t *testing.T) {
	b, err := os.ReadFile("../../deploy/config/dnsd.toml")
	if err != nil {
		t.Fatal(err)
	}
	var got dnsdConfig
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := dnsdConfig{daemon.Default(), dnsd.Default()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-default +file):\n%s", diff)
	}
	if err := want.Check(); err != nil {
		t.Error(err)
	}
}

// TestTheUnitHasLittle holds the unit against what the suite knows of the plugin:
// another user would be an operator, by its group.
func TestTheUnitHasLittle(t *testing.T) {
	at := slices.IndexFunc(suite.Plugins, func(p suite.Daemon) bool { return p.Name == suite.Dnsd })
	user := suite.Plugins[at].User
	for file, wants := range map[string][]string{
		"systemd/dnsd.service": {
			"User=" + user, "SupplementaryGroups=gantry", "NoNewPrivileges=yes", "ProtectSystem=strict",
			"AmbientCapabilities=CAP_NET_BIND_SERVICE", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
			"ExecStart=/usr/libexec/gantry/dnsd",
		},
		"systemd/dnsd.socket":        {"ListenStream=" + suite.Socket(suite.Sockets, suite.Dnsd), "FileDescriptorName=" + suite.Dnsd},
		"sysusers.d/gantry-dns.conf": {"u " + user + ` - "gantry: names of containers"`},
	} {
		b, err := os.ReadFile(filepath.Join("../../deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(b), "\n")
		for _, want := range wants {
			key, _, _ := strings.Cut(want, "=")
			n := 0
			for _, l := range lines {
				if k, _, _ := strings.Cut(l, "="); k == key {
					n++
				}
			}
			if n != 1 || !slices.Contains(lines, want) {
				t.Errorf("%s: %d lines of %s, want one: %s", file, n, key, want)
			}
		}
	}
}

// TestTheBusLetsItHear holds that the bus grants, unasked, what it hears.
func TestTheBusLetsItHear(t *testing.T) {
	all := eventbus.Default().Plugins
	at := slices.IndexFunc(all, func(p eventbus.Plugin) bool { return p.Name == suite.Dnsd })
	if at < 0 {
		t.Fatal("the bus does not know the plugin")
	}
	for _, s := range dnsd.Subjects() {
		if !eventnats.Covers(all[at].Subscribe, s) {
			t.Errorf("%s is not granted", s)
		}
	}
	if own := suite.Plugins[slices.IndexFunc(suite.Plugins, func(p suite.Daemon) bool { return p.Name == suite.Dnsd })]; all[at].User != own.User {
		t.Errorf("it is user %s to the bus, and %s to the suite", all[at].User, own.User)
	}
}
