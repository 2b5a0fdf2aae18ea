package client_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/network"
)

func TestAContainerOnANetworkWaitsAtTheGate(t *testing.T) {
	c := demoNode(t, nil)
	ports, err := network.ParsePorts("8080:80,53:53/udp")
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"app": "web", gate.Label: "audit"}
	k, err := c.In(scope.Name).Create(t.Context(), client.CreateOptions{
		Image: "demo:latest", Program: client.Program{Args: []string{"true"}}, Labels: labels,
		Net: client.Net{Name: "default", Ports: ports, ResolvConf: "/run/gantry/netd/default/resolv.conf"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"app": "web", gate.Label: "audit,network",
		network.LabelNetwork: "default", network.LabelPorts: "53:53/udp,8080:80/tcp",
	} {
		if got := k.Labels[key]; got != want {
			t.Errorf("label %s is %q, want %q", key, got, want)
		}
	}
	if labels[network.LabelNetwork] != "" {
		t.Error("the caller's labels were changed")
	}
	var spec specs.Spec
	if err := json.Unmarshal(k.Spec.Data, &spec); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.NetworkNamespace && n.Path == ""
	}) {
		t.Errorf("it has no network namespace of its own: %v", spec.Linux.Namespaces)
	}
	if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/etc/resolv.conf" && slices.Contains(m.Options, "ro")
	}) {
		t.Errorf("it has no resolv.conf: %v", spec.Mounts)
	}
	// On a shared wire raw sockets speak for others (CVE-2020-10749,
	// CVE-2020-8558).
	caps := spec.Process.Capabilities
	for _, set := range [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient} {
		if slices.Contains(set, "CAP_NET_RAW") {
			t.Errorf("it has raw sockets: %v", set)
		}
	}
}

func TestNetworksThatMakeNoSense(t *testing.T) {
	c := demoNode(t, nil)
	ports := []network.Port{{Host: 1, Container: 1, Protocol: "tcp"}}
	for _, o := range []client.CreateOptions{
		{Net: client.Net{Ports: ports}},
		{Net: client.Net{Name: "default"}, HostNet: true},
		{Net: client.Net{Name: "../default"}},
		{Net: client.Net{Name: "default", Ports: append(ports, ports...)}},
	} {
		o.Image, o.Program = "demo:latest", client.Program{Args: []string{"true"}}
		if k, err := c.In(scope.Name).Create(t.Context(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: got %v, %v", o.Net, k, err)
		}
	}
	if list, err := c.Containers.In(scope).List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("containers are left: %v, %v", list, err)
	}
}

func TestImagesAskForNoNetwork(t *testing.T) {
	for _, l := range []string{network.LabelNetwork, network.LabelPorts, network.LabelAddresses, gate.Label} {
		if !strings.HasPrefix(l, "gantry.dev/") {
			t.Errorf("an image may have label %s", l)
		}
	}
}
