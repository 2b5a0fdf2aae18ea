package eventbus

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// A fleet whose accounts are signed by an operator lets in who has credentials.
func TestAFleetIsToldWithCredentials(t *testing.T) {
	operator, operatorKey := newKeyOf(t, nkeys.PrefixByteOperator)
	system, _ := newKeyOf(t, nkeys.PrefixByteAccount)
	nodes, nodesKey := newKeyOf(t, nkeys.PrefixByteAccount)
	user, userKey := newKeyOf(t, nkeys.PrefixByteUser)
	sign := func(c jwt.Claims, key nkeys.KeyPair) string {
		t.Helper()
		token, err := c.Encode(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	account := jwt.NewAccountClaims(nodes)
	account.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
	token := sign(jwt.NewUserClaims(user), nodesKey)
	seed, err := userKey.Seed()
	if err != nil {
		t.Fatal(err)
	}
	f := startServer(t, "", fmt.Sprintf("operator: %s, system_account: %s, resolver: MEMORY, resolver_preload { %s: %s, %s: %s }",
		sign(jwt.NewOperatorClaims(operator), operatorKey), system,
		system, sign(jwt.NewAccountClaims(system), operatorKey),
		nodes, sign(account, operatorKey),
	), nats.UserJWTAndSeed(token, string(seed)))
	f.stream(t, jetstream.StreamConfig{})

	credentials, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	cfg := fleetConfig(t, f, userKey)
	cfg.Leaf.NKey, cfg.Leaf.Credentials = "", filepath.Join(t.TempDir(), "node.creds")
	if err := os.WriteFile(cfg.Leaf.Credentials, credentials, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := forwarding(t, cfg)
	publishNumbers(t, b, 1)
	f.told(t, 1)
}

func newKeyOf(t *testing.T, prefix nkeys.PrefixByte) (public string, key nkeys.KeyPair) {
	t.Helper()
	key, err := nkeys.CreatePair(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if public, err = key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return public, key
}

func TestEveryMistakeInLeafIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		leaf Leaf
		says string
	}{
		"no url":               {Leaf{Node: "n"}, "leaf.url"},
		"another scheme":       {Leaf{URL: "http://127.0.0.1:1"}, "leaf.url"},
		"no port":              {Leaf{URL: "tls://127.0.0.1"}, "leaf.url"},
		"a path":               {Leaf{URL: "tls://127.0.0.1:1/x"}, "leaf.url"},
		"a password":           {Leaf{URL: "tls://a:b@127.0.0.1:1"}, "leaf.url"},
		"no TLS to elsewhere":  {Leaf{URL: "nats-leaf://10.0.0.1:7422"}, "want tls://"},
		"no TLS to a name":     {Leaf{URL: "nats-leaf://fleet:7422"}, "want tls://"},
		"two ways to be known": {Leaf{URL: "tls://f:1", NKey: "/a", Credentials: "/b"}, "want one"},
		"a relative path":      {Leaf{URL: "tls://f:1", NKey: "a"}, "leaf.nkey"},
		"a subject as node":    {Leaf{URL: "tls://f:1", Node: "a.>"}, "leaf.node"},
	} {
		cfg := Default()
		cfg.Leaf = c.leaf
		if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}
