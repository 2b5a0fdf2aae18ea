package eventbus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/gantryd/gantry/services/event/eventnats"
)

// Leaf says which NATS of a fleet is told of this node's events.
type Leaf struct {
	URL         string `toml:"url"`         // tls://host:port, or nats-leaf:// on loopback; empty is none
	NKey        string `toml:"nkey"`        // file with the seed of the key that the fleet knows us by, or
	Credentials string `toml:"credentials"` // file with them
	CA          string `toml:"ca"`          // file, PEM; who signs the fleet's certificate if the system does not know
	Node        string `toml:"node"`        // what this node is called there; empty is the host's name
}

const (
	// accountLeaf is where the fleet is. It has what is told to it, and
	// nothing else: no stream, no service, no way to the node's account.
	accountLeaf = "LEAF"

	// leafSubscriptions is what a fleet may subscribe to.
	leafSubscriptions = 16 << 10
)

var nodeName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,251}[a-zA-Z0-9])?$`)

func (l Leaf) check() error {
	if l == (Leaf{}) {
		return nil
	}
	var errs []error
	u, err := url.Parse(l.URL)
	switch {
	case err != nil || u.Scheme != "tls" && u.Scheme != "nats-leaf" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "":
		errs = append(errs, fmt.Errorf("leaf.url: %q is not tls://host:port or nats-leaf://host:port", l.URL))
	case u.User != nil:
		errs = append(errs, errors.New("leaf.url: who we are belongs into a file, nkey or credentials"))
	case u.Scheme != "tls" && !loopback(u.Hostname()):
		errs = append(errs, fmt.Errorf("leaf.url: %s is not loopback, and what is told to it is to be read by nobody else: want tls://", u.Hostname()))
	}
	if l.NKey != "" && l.Credentials != "" {
		errs = append(errs, errors.New("leaf.nkey, leaf.credentials: want one of them"))
	}
	for name, path := range map[string]string{"nkey": l.NKey, "credentials": l.Credentials, "ca": l.CA} {
		if path != "" && !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("leaf.%s: %q is not an absolute path", name, path))
		}
	}
	if l.Node != "" && !nodeName.MatchString(l.Node) {
		errs = append(errs, fmt.Errorf("leaf.node: %q is not the name of a host", l.Node))
	}
	return errors.Join(errs...)
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// node returns what this node is called.
func (l Leaf) node() (string, error) {
	if l.Node != "" {
		return l.Node, nil
	}
	return os.Hostname()
}

// account is that of the fleet.
func (l Leaf) account() *account {
	return &account{Limits: map[string]int{"max_connections": 2, "max_subscriptions": leafSubscriptions}}
}

// mayForward are the permissions of who tells the fleet.
func mayForward(node string) *server.Permissions {
	return &server.Permissions{
		Publish:   allowed([]string{eventnats.FleetSubjects(node)}),
		Subscribe: allowed([]string{inboxes}),
	}
}

// remote returns how the server connects to the fleet. Whatever the fleet says
// to us is denied but for acknowledgements; and nobody is there to hear it.
func (l Leaf) remote() (*server.RemoteLeafOpts, error) {
	u, err := url.Parse(l.URL)
	if err != nil {
		return nil, err
	}
	r := &server.RemoteLeafOpts{
		URLs:                    []*url.URL{u},
		LocalAccount:            accountLeaf,
		Credentials:             l.Credentials,
		TLS:                     u.Scheme == "tls",
		DenyImports:             []string{"gantry.v1.>", "gantry.bus.>", "$JS.>", "$SYS.>", "$KV.>", "$O.>", "_R_.>"},
		IgnoreDiscoveredServers: true,
	}
	if r.Nkey, err = l.seed(); err != nil {
		return nil, err
	}
	if r.TLS {
		r.TLSConfig, err = l.trust(u.Hostname())
	}
	return r, err
}

func (l Leaf) seed() (string, error) {
	if l.NKey == "" {
		return "", nil
	}
	b, err := os.ReadFile(l.NKey)
	if err != nil {
		return "", err
	}
	seed := strings.TrimSpace(string(b))
	if prefix, _, err := nkeys.DecodeSeed([]byte(seed)); err != nil || prefix != nkeys.PrefixByteUser {
		return "", fmt.Errorf("%s is not the seed of a user (SU…): %w", l.NKey, errdefs.ErrInvalidArgument)
	}
	return seed, nil
}

func (l Leaf) trust(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if net.ParseIP(host) == nil {
		c.ServerName = host
	}
	if l.CA == "" {
		return c, nil
	}
	b, err := os.ReadFile(l.CA)
	if err != nil {
		return nil, err
	}
	if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s has no certificate: %w", l.CA, errdefs.ErrInvalidArgument)
	}
	return c, nil
}
