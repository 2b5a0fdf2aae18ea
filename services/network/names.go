package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
)

// LabelNames is further names of a container in its network, identifiers that
// are separated by commas. Its id is one without being named.
const LabelNames = "gantry.dev/names"

// Limits of what labels say.
const (
	namesMax     = 16
	addressesMax = 16
)

// ParseNames reads the label of names: [errdefs.ErrInvalidArgument] if one is no
// identifier, or there are more than 16.
func ParseNames(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	if strings.Count(s, ",") >= namesMax {
		return nil, fmt.Errorf("more than %d names: %w", namesMax, errdefs.ErrInvalidArgument)
	}
	names := strings.Split(s, ",")
	for _, n := range names {
		if err := ident.Check(n); err != nil {
			return nil, fmt.Errorf("name: %w", err)
		}
	}
	return names, nil
}

// ParseAddresses reads the label of addresses: [errdefs.ErrInvalidArgument] if
// one is not an address, with its network's prefix, that a container can have,
// or there are more than 16.
func ParseAddresses(s string) ([]netip.Addr, error) {
	if s == "" {
		return nil, nil
	}
	if strings.Count(s, ",") >= addressesMax {
		return nil, fmt.Errorf("more than %d addresses: %w", addressesMax, errdefs.ErrInvalidArgument)
	}
	var all []netip.Addr
	for part := range strings.SplitSeq(s, ",") {
		p, err := netip.ParsePrefix(part)
		if err != nil || !p.Addr().IsGlobalUnicast() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("address %.64q: %w", part, errdefs.ErrInvalidArgument)
		}
		all = append(all, p.Addr())
	}
	return all, nil
}

// nodesFile is no network's directory: their names do not begin with a dot.
const nodesFile = ".nodes"

// nodesMax is the size of the file of the node's addresses.
const nodesMax = 1 << 20

// WriteNodes keeps in dir which addresses the node has in networks, each with
// the length of the network's prefix. Everybody may read it.
func WriteNodes(dir string, nodes []netip.Prefix) error {
	var text strings.Builder
	for _, p := range nodes {
		fmt.Fprintln(&text, p)
	}
	name := filepath.Join(dir, nodesFile)
	if got, err := os.ReadFile(name); err == nil && string(got) == text.String() {
		return nil
	}
	// By rename, so that who reads it reads all of it; and whatever our umask.
	fresh := name + ".new"
	return errors.Join(
		os.WriteFile(fresh, []byte(text.String()), 0o644),
		os.Chmod(fresh, 0o644),
		os.Rename(fresh, name),
	)
}

// ReadNodes reads what WriteNodes wrote in dir; nothing is none.
func ReadNodes(dir string) ([]netip.Prefix, error) {
	name := filepath.Join(dir, nodesFile)
	fi, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && fi.Size() > nodesMax {
		err = fmt.Errorf("%s: %d bytes: %w", name, fi.Size(), errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for line := range strings.Lines(string(b)) {
		p, err := netip.ParsePrefix(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %v: %w", name, err, errdefs.ErrInvalidArgument)
		}
		all = append(all, p)
	}
	return all, nil
}
