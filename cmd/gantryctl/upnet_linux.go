package main

import (
	_ "embed"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/gantryd/gantry/services/suite"
)

// defaultNetwork is what a suite without networks gets.
//
//go:embed default.conflist
var defaultNetwork []byte

// plugins are what runs beside the daemons.
func (o *upOptions) plugins() (names []string) {
	if o.net {
		for _, p := range suite.Plugins {
			names = append(names, p.Name)
		}
	}
	return names
}

// names are those of all executables that run.
func (o *upOptions) names() []string {
	names := o.plugins()
	for _, d := range suite.Daemons {
		names = append(names, d.Name)
	}
	return names
}

// networks are the directories of networks, those made here first.
func (o *upOptions) networks() []string {
	return []string{filepath.Join(o.root, "networks"), "/etc/gantry/networks"}
}

// writeNetwork makes the default network if there is none at all.
func (o *upOptions) writeNetwork() error {
	for _, dir := range o.networks() {
		if there, _ := filepath.Glob(filepath.Join(dir, "*.conflist")); len(there) > 0 {
			return nil
		}
	}
	dir := o.networks()[0]
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// By rename, so that a half-written one is not taken for a network.
	fresh := filepath.Join(dir, "default.new")
	if err := os.WriteFile(fresh, defaultNetwork, 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, filepath.Join(dir, "default.conflist"))
}

// checkCNI finds what would be missing when the first container is connected.
func checkCNI() error {
	found := false
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); !errors.Is(err, fs.ErrNotExist) {
			found = true
		}
	}
	if !found {
		return errors.New("up: CNI's plugins are not installed, and --net needs them: apt-get install containernetworking-plugins")
	}
	for _, path := range []string{"/usr/sbin/iptables", "/sbin/iptables"} {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		return errors.New("up: iptables is not installed, and --net needs it to publish ports: apt-get install iptables")
	}
	return nil
}
