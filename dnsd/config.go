package dnsd

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/suite"
)

// A Config says what is answered, and where.
type Config struct {
	Zone string `toml:"zone"` // of the containers' full names

	// Listen are addresses with ports, beside port 53 of the addresses that
	// the node has in netd's networks.
	Listen []string `toml:"listen"`

	// Networks is netd's directory of what does not outlive a boot, where it
	// says which addresses those are.
	Networks string `toml:"networks"`

	TTLSeconds   int `toml:"ttl_seconds"`   // how long who asked may remember
	StaleSeconds int `toml:"stale_seconds"` // how long is answered while nobody tells us what is true

	// Forward has other names asked of Upstreams, addresses with or without a
	// port. None is what ResolvConf says.
	Forward    bool     `toml:"forward"`
	Upstreams  []string `toml:"upstreams"`
	ResolvConf string   `toml:"resolv_conf"`
}

// Default is the config of a node that runs the suite under systemd.
func Default() Config {
	return Config{
		Zone:         "gantry.internal",
		Listen:       []string{},
		Networks:     network.Dir(suite.Sockets),
		TTLSeconds:   5,
		StaleSeconds: 30,
		Forward:      true,
		Upstreams:    []string{},
		ResolvConf:   "/etc/resolv.conf",
	}
}

// zoneMax leaves room for the longest name and the longest namespace.
const zoneMax = 100

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	if _, ok := dns.IsDomainName(c.Zone); !ok || c.Zone == "" || c.Zone == "." || len(c.Zone) > zoneMax || strings.Contains(c.Zone, `\`) {
		errs = append(errs, fmt.Errorf("zone: %.120q is not a domain of at most %d bytes", c.Zone, zoneMax))
	}
	if n := dns.Fqdn(c.Zone); dns.IsSubDomain("arpa.", n) {
		errs = append(errs, fmt.Errorf("zone: %q is for addresses", c.Zone))
	}
	for _, a := range c.Listen {
		if _, err := netip.ParseAddrPort(a); err != nil {
			errs = append(errs, fmt.Errorf("listen: %q is not an address with a port", a))
		}
	}
	for _, a := range c.Upstreams {
		if _, err := parseUpstream(a); err != nil {
			errs = append(errs, fmt.Errorf("upstreams: %q is not an address", a))
		}
	}
	if len(c.Upstreams) > upstreamsMax {
		errs = append(errs, fmt.Errorf("upstreams: more than %d", upstreamsMax))
	}
	for _, p := range []struct{ key, path string }{{"networks", c.Networks}, {"resolv_conf", c.ResolvConf}} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", p.key, p.path))
		}
	}
	if c.TTLSeconds < 0 || c.TTLSeconds > 3600 {
		errs = append(errs, fmt.Errorf("ttl_seconds: %d is not from 0 to 3600", c.TTLSeconds))
	}
	if c.StaleSeconds < 0 || c.StaleSeconds > 24*3600 {
		errs = append(errs, fmt.Errorf("stale_seconds: %d is not from 0 to 86400", c.StaleSeconds))
	}
	return errors.Join(errs...)
}

func (c Config) staleTime() time.Duration { return time.Duration(c.StaleSeconds) * time.Second }
