package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/gantryd/gantry/netd"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/suite"
)

func TestConfigFileShowsEveryDefault(t *testing.T) {
	b, err := os.ReadFile("../../deploy/config/netd.toml")
	if err != nil {
		t.Fatal(err)
	}
	var got netdConfig
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := netdConfig{daemon.Default(), netd.Default(), suite.Address}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-default +file):\n%s", diff)
	}
	if err := want.Check(); err != nil {
		t.Error(err)
	}
}

// TestTheDefaultNetworkIsWhatUpMakes holds that a node under systemd is offered
// the network that gantryctl up makes.
func TestTheDefaultNetworkIsWhatUpMakes(t *testing.T) {
	ours, err := os.ReadFile("../gantryctl/default.conflist")
	if err != nil {
		t.Fatal(err)
	}
	deployed, err := os.ReadFile("../../deploy/config/networks/default.conflist")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ours, deployed) {
		t.Error("they differ")
	}
	// Rules for nftables, where a portmap would choose those by itself, have
	// taken what was not for them (CVE-2025-67499).
	if !bytes.Contains(ours, []byte(`"backend": "iptables"`)) {
		t.Error("portmap may choose its backend")
	}
}
