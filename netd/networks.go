package netd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/network"
)

// A networkFile is a network as its file has it.
type networkFile struct {
	name string
	list []byte
	ipam []hostLocal // of its plugins
}

// A hostLocal is what we read of the address management that keeps a file per
// address.
type hostLocal struct {
	Type    string         `json:"type"`
	DataDir string         `json:"dataDir"`
	Subnet  string         `json:"subnet"`
	Gateway string         `json:"gateway"`
	Ranges  [][]addressSet `json:"ranges"`
}

type addressSet struct {
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`
}

// listMax is the size of a network's file.
const listMax = 1 << 20

// network returns the network of that name.
func (s *Store) network(name string) (networkFile, error) {
	all, broken := s.networks()
	for _, n := range all {
		if n.name == name {
			return n, nil
		}
	}
	err := fmt.Errorf("network %s: not in %s: %w", name, strings.Join(s.cfg.Networks, ", "), errdefs.ErrNotFound)
	if broken != nil {
		err = fmt.Errorf("%w (and %v)", err, broken)
	}
	return networkFile{}, err
}

// networks reads every file, each time: there are few, and they may change. An
// error is about files that cannot be used.
func (s *Store) networks() (all []networkFile, broken error) {
	var errs []error
	for _, dir := range s.cfg.Networks {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".conflist" {
				continue
			}
			n, err := readNetwork(filepath.Join(dir, e.Name()))
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", filepath.Join(dir, e.Name()), err))
			case !slices.ContainsFunc(all, func(o networkFile) bool { return o.name == n.name }):
				all = append(all, n)
			}
		}
	}
	return all, errors.Join(errs...)
}

func readNetwork(file string) (networkFile, error) {
	f, err := os.Open(file)
	if err != nil {
		return networkFile{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return networkFile{}, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > listMax {
		return networkFile{}, fmt.Errorf("not a file of at most %d bytes: %w", listMax, errdefs.ErrInvalidArgument)
	}
	b := make([]byte, fi.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return networkFile{}, err
	}
	return parseNetwork(b)
}

// parseNetwork reads the form of CNI's lists.
func parseNetwork(b []byte) (networkFile, error) {
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		return networkFile{}, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := ident.Check(list.Name); err != nil {
		return networkFile{}, err
	}
	if len(list.Plugins) == 0 {
		return networkFile{}, fmt.Errorf("network %s: no plugins: %w", list.Name, errdefs.ErrInvalidArgument)
	}
	n := networkFile{name: list.Name, list: b}
	for _, p := range list.Plugins {
		if p.Network.Type == "" || strings.ContainsRune(p.Network.Type, filepath.Separator) {
			return networkFile{}, fmt.Errorf("network %s: plugin %q: want the name of a file in a directory of plugins: %w", list.Name, p.Network.Type, errdefs.ErrInvalidArgument)
		}
		var part struct {
			IPAM hostLocal `json:"ipam"`
		}
		// Another kind of address management may have these keys in another
		// form, which does not matter here.
		if json.Unmarshal(p.Bytes, &part) == nil && part.IPAM.Type == "host-local" {
			n.ipam = append(n.ipam, part.IPAM)
		}
	}
	return n, nil
}

// nodes returns the addresses that the node has in the network.
func (n networkFile) nodes() (all []netip.Prefix) {
	for _, h := range n.ipam {
		sets := slices.Concat(h.Ranges...)
		if h.Subnet != "" {
			sets = append(sets, addressSet{h.Subnet, h.Gateway})
		}
		for _, set := range sets {
			subnet, err := netip.ParsePrefix(set.Subnet)
			if err != nil {
				continue
			}
			gateway := subnet.Masked().Addr().Next() // host-local's rule
			if set.Gateway != "" {
				if gateway, err = netip.ParseAddr(set.Gateway); err != nil {
					continue
				}
			}
			if gateway.Zone() == "" && gateway.BitLen() == subnet.Addr().BitLen() {
				all = append(all, netip.PrefixFrom(gateway, subnet.Bits()))
			}
		}
	}
	return all
}

// nodeResolver is used in networks of which we do not know the node's address.
const nodeResolver = "/etc/resolv.conf"

// resolverTime is between two looks for networks that are new.
const resolverTime = 10 * time.Second

// Resolve keeps the resolver configuration of every network, until ctx ends.
func (s *Store) Resolve(ctx context.Context) error {
	tick := time.NewTicker(resolverTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.writeResolvers(); err != nil {
			s.log.Warn("a resolver configuration is not written", "err", err)
		}
	}
}

// writeResolvers writes the resolver configuration of every network, and which
// addresses the node has in them. It is
// written where it stands: containers have the file itself.
func (s *Store) writeResolvers() error {
	all, _ := s.networks()
	if err := makeDir(s.cfg.State, 0o711); err != nil {
		return err
	}
	var errs []error
	var nodes []netip.Prefix
	for _, n := range all {
		errs = append(errs, s.writeResolver(n))
		nodes = append(nodes, n.nodes()...)
	}
	// Whoever answers for names has to know where.
	return errors.Join(append(errs, network.WriteNodes(s.cfg.State, nodes))...)
}

func (s *Store) writeResolver(n networkFile) error {
	var text strings.Builder
	for _, p := range n.nodes() {
		fmt.Fprintf(&text, "nameserver %s\n", p.Addr())
	}
	want := []byte(text.String())
	if len(want) == 0 {
		b, err := os.ReadFile(nodeResolver)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		want = b
	}
	file := network.ResolvConf(s.cfg.State, n.name)
	if got, err := os.ReadFile(file); err == nil && string(got) == string(want) {
		return nil
	}
	if err := makeDir(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	// Containers' users read it, whatever our umask.
	return errors.Join(os.WriteFile(file, want, 0o644), os.Chmod(file, 0o644))
}

func makeDir(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}
