package client

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/network"
)

// Net says which network a container is connected to before it starts. The zero
// value is none: a network of its own with nothing in it.
type Net struct {
	Name  string
	Ports []network.Port // that are published

	// ResolvConf is a file of the node that becomes the container's
	// /etc/resolv.conf, if it is not empty: [network.ResolvConf].
	ResolvConf string
}

// connect puts what o.Net says into labels and mounts.
func (o *CreateOptions) connect() error {
	switch {
	case o.Net.Name == "" && len(o.Net.Ports) > 0:
		return fmt.Errorf("ports are published of a network, and none is named: %w", errdefs.ErrInvalidArgument)
	case o.Net.Name == "":
		return nil
	case o.HostNet:
		return fmt.Errorf("network %s: a container on the node's network is on no other: %w", o.Net.Name, errdefs.ErrInvalidArgument)
	}
	labels := maps.Clone(o.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[network.LabelNetwork] = o.Net.Name
	if len(o.Net.Ports) > 0 {
		labels[network.LabelPorts] = network.FormatPorts(o.Net.Ports)
	}
	if _, err := network.Wanted(labels); err != nil {
		return err
	}
	gates := network.Gate
	if more := labels[gate.Label]; more != "" {
		gates = more + "," + gates
	}
	labels[gate.Label] = gates
	o.Labels = labels
	if o.Net.ResolvConf != "" {
		o.Mounts = append(slices.Clip(o.Mounts), specs.Mount{
			Type: "bind", Source: o.Net.ResolvConf, Destination: "/etc/resolv.conf",
			Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"},
		})
	}
	return nil
}

// withoutRawSockets takes away what speaks for others on a wire that is shared.
func withoutRawSockets(c *specs.LinuxCapabilities) {
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
		*set = slices.DeleteFunc(slices.Clone(*set), func(name string) bool { return strings.EqualFold(name, "CAP_NET_RAW") })
	}
}
