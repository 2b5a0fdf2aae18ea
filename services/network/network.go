// Package network holds the words by which a container asks for a network and
// is told what it got: labels, and the ports that it publishes. They come from
// clients, so that everything here is strict.
package network

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
)

// The labels of a container.
const (
	// LabelNetwork names the network that it is to be connected to.
	LabelNetwork = "gantry.dev/network"

	// LabelPorts is what [FormatPorts] makes of the ports that it publishes.
	LabelPorts = "gantry.dev/ports"

	// LabelAddresses is the container's addresses, each with the length of its
	// network's prefix, separated by commas: "10.87.0.2/16". It is set when
	// the container is connected and removed when it no longer is.
	LabelAddresses = "gantry.dev/network.addresses"
)

// Gate is the name of the gate that connects containers.
const Gate = "network"

// A Want is what a container asks for.
type Want struct {
	Network string // empty is none
	Ports   []Port
}

// Wanted reads labels. What does not parse is [errdefs.ErrInvalidArgument], and
// so are ports without a network.
func Wanted(labels map[string]string) (Want, error) {
	w := Want{Network: labels[LabelNetwork]}
	var err error
	if w.Ports, err = ParsePorts(labels[LabelPorts]); err != nil {
		return Want{}, fmt.Errorf("label %s: %w", LabelPorts, err)
	}
	if w.Network == "" {
		if len(w.Ports) > 0 {
			return Want{}, fmt.Errorf("label %s without label %s: ports are published of a network: %w", LabelPorts, LabelNetwork, errdefs.ErrInvalidArgument)
		}
		return w, nil
	}
	if err := ident.Check(w.Network); err != nil {
		return Want{}, fmt.Errorf("label %s: %w", LabelNetwork, err)
	}
	return w, nil
}

// Dir returns where netd keeps what does not outlive a boot, among the sockets
// in dir.
func Dir(dir string) string { return filepath.Join(dir, "netd") }

// ResolvConf returns the resolver configuration of a network, which netd keeps
// for as long as it knows the network.
func ResolvConf(dir, network string) string {
	return filepath.Join(dir, network, "resolv.conf")
}
