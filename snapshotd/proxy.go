package snapshotd

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/suite"
)

// A Proxy is an external snapshotter, as containerd's proxy_plugins describe
// them.
type Proxy struct {
	Address      string            `toml:"address"`      // its socket
	Platform     string            `toml:"platform"`     // whose images it unpacks; empty is this machine's
	Exports      map[string]string `toml:"exports"`      // told to clients
	Capabilities []string          `toml:"capabilities"` // told to clients: "rebase", "remap-ids", …
}

// proxiesMax is how many there are at most, and socketMax how long the path of a
// socket.
const proxiesMax, socketMax = 64, 107

func (c Config) checkProxies() error {
	var errs []error
	if len(c.Proxies) > proxiesMax {
		errs = append(errs, fmt.Errorf("proxy: %d are more than %d", len(c.Proxies), proxiesMax))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Proxies)) {
		for _, err := range c.Proxies[name].check(name) {
			errs = append(errs, fmt.Errorf("proxy.%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (p Proxy) check(name string) (errs []error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		errs = append(errs, errors.New("a name is not empty and has no slash"))
	}
	if _, ours := openers[name]; ours {
		errs = append(errs, errors.New("a snapshotter of this daemon has the name"))
	}
	if !filepath.IsAbs(p.Address) || p.Address != filepath.Clean(p.Address) || len(p.Address) > socketMax {
		errs = append(errs, fmt.Errorf("address: %q is not a clean absolute path of at most %d bytes", p.Address, socketMax))
	}
	if p.Platform != "" {
		if _, err := platforms.Parse(p.Platform); err != nil {
			errs = append(errs, fmt.Errorf("platform: %w", err))
		}
	}
	return errs
}

// traits are the capabilities that mean something here.
func (p Proxy) traits() snapshot.Traits {
	return snapshot.Traits{
		Rebase:   slices.Contains(p.Capabilities, "rebase"),
		RemapIDs: slices.Contains(p.Capabilities, "remap-ids"),
	}
}

// proxyPlugins describe the external snapshotters.
func (s *Store) proxyPlugins() (all []suite.Plugin) {
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Proxies)) {
		p := s.cfg.Proxies[name]
		platform := p.Platform
		if platform == "" {
			platform = platforms.Format(platforms.DefaultSpec())
		}
		all = append(all, suite.Plugin{
			Type: "io.containerd.snapshotter.v1", ID: name, Platforms: []string{platform},
			Exports: p.Exports, Capabilities: p.Capabilities,
		})
	}
	return all
}
