package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// PortsMax is how many ports a container may publish. Each is several rules of
// the node's packet filter.
const PortsMax = 64

// A Port of a container is reached at a port of the node.
type Port struct {
	HostIP    netip.Addr `json:"host_ip,omitzero"` // of the node's addresses; the zero value is all
	Host      uint16     `json:"host"`
	Container uint16     `json:"container"`
	Protocol  string     `json:"protocol"` // "tcp" or "udp"
}

// String is what ParsePort reads.
func (p Port) String() string {
	s := fmt.Sprintf("%d:%d/%s", p.Host, p.Container, p.Protocol)
	switch {
	case !p.HostIP.IsValid():
		return s
	case p.HostIP.Is6():
		return "[" + p.HostIP.String() + "]:" + s
	}
	return p.HostIP.String() + ":" + s
}

// Overlaps says whether both would take a connection to the same place.
func (p Port) Overlaps(o Port) bool {
	return p.Host == o.Host && p.Protocol == o.Protocol && (!p.HostIP.IsValid() || !o.HostIP.IsValid() || p.HostIP == o.HostIP)
}

// ParsePort reads "[ADDRESS:]HOST:CONTAINER[/PROTOCOL]", which is tcp unless it
// says udp. An IPv6 address is in brackets. Anything else is
// [errdefs.ErrInvalidArgument].
func ParsePort(s string) (p Port, err error) {
	wrong := func(what string) (Port, error) {
		return Port{}, fmt.Errorf("port %.64q: %s; want [ADDRESS:]HOST:CONTAINER[/tcp|/udp]: %w", s, what, errdefs.ErrInvalidArgument)
	}
	rest, protocol, named := strings.Cut(s, "/")
	p.Protocol = "tcp"
	if named {
		p.Protocol = protocol
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return wrong("unknown protocol")
	}
	rest, inside, ok := cutLast(rest)
	if !ok {
		return wrong("a part is missing")
	}
	address, host, addressed := cutLast(rest)
	if !addressed {
		host = rest
	} else {
		if p.HostIP, err = parseAddress(address); err != nil {
			return wrong("not an address of the node")
		}
	}
	if p.Host, ok = parseNumber(host); !ok {
		return wrong("the node's port is not from 1 to 65535")
	}
	if p.Container, ok = parseNumber(inside); !ok {
		return wrong("the container's port is not from 1 to 65535")
	}
	return p, nil
}

// parseAddress reads an address as it stands before a colon.
func parseAddress(s string) (netip.Addr, error) {
	inner, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return netip.Addr{}, errdefs.ErrInvalidArgument
		}
	}
	a, err := netip.ParseAddr(inner)
	if err != nil || a.Is6() != bracketed || a.Zone() != "" || a.Is4In6() || a.IsMulticast() || a.Is6() && a.IsUnspecified() {
		return netip.Addr{}, errdefs.ErrInvalidArgument
	}
	if a.IsUnspecified() {
		return netip.Addr{}, nil // what people write for all
	}
	return a, nil
}

// cutLast cuts at the last colon.
func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// parseNumber reads a port as it is printed: no sign, no zero before it.
func parseNumber(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// ParsePorts reads a list with commas, in the order of the node's ports. More
// than [PortsMax], and two that overlap, are [errdefs.ErrInvalidArgument].
func ParsePorts(s string) ([]Port, error) {
	if s == "" {
		return nil, nil
	}
	if n := strings.Count(s, ",") + 1; n > PortsMax {
		return nil, fmt.Errorf("%d ports are more than %d: %w", n, PortsMax, errdefs.ErrInvalidArgument)
	}
	var ports []Port
	for part := range strings.SplitSeq(s, ",") {
		p, err := ParsePort(part)
		if err != nil {
			return nil, err
		}
		for _, o := range ports {
			if p.Overlaps(o) {
				return nil, fmt.Errorf("ports %s and %s are the same port of the node: %w", o, p, errdefs.ErrInvalidArgument)
			}
		}
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Protocol, b.Protocol), a.HostIP.Compare(b.HostIP))
	})
	return ports, nil
}

// FormatPorts returns what ParsePorts reads.
func FormatPorts(ports []Port) string {
	var all []string
	for _, p := range ports {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}
