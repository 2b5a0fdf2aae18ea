package eventbus

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/ident"
)

var _ event.Reporter = (*Bus)(nil)

// Status implements event.Reporter.
func (b *Bus) Status(ctx context.Context) (event.Status, error) {
	if err := ctx.Err(); err != nil {
		return event.Status{}, err
	}
	have := b.journal.Stat()
	st := event.Status{
		Stream: event.Stream{
			Epoch: b.epoch, First: have.First, Last: have.Last, Bytes: have.Bytes,
			BytesMax: b.cfg.retainBytes(), AgeMax: b.cfg.retainTime(), Oldest: have.Oldest.UTC(),
		},
		ConnectionsMax: connectionsMax + len(b.cfg.Plugins)*pluginConnections,
	}
	st.Readers = b.readers.list(b.at(have.Last))
	return st, b.reportPeers(&st)
}

// reportPeers says who is connected, and who of them answers a gate.
func (b *Bus) reportPeers(st *event.Status) error {
	z, err := b.server.Connz(&server.ConnzOptions{Username: true, Subscriptions: true, Limit: math.MaxInt32})
	if err != nil {
		return fmt.Errorf("connections of the bus: %v: %w", err, errdefs.ErrInternal)
	}
	peers, gates := make(map[string]event.Peer), make(map[string]event.Gate)
	for _, p := range b.cfg.Plugins {
		peers[p.Name] = event.Peer{Name: p.Name}
		for _, g := range p.Gates {
			gates[g] = event.Gate{Name: g, Plugins: []string{p.Name}}
		}
	}
	for _, c := range z.Conns {
		name := peerName(c)
		if name == "" {
			continue
		}
		p := peers[name]
		p.Name, p.Connections = name, p.Connections+1
		p.Subscriptions += int(c.NumSubs)
		p.Pending += int64(c.Pending)
		peers[name] = p
		st.Connections++
		for _, s := range c.Subs {
			if g, ok := gateOf(s); ok {
				was := gates[g]
				gates[g] = event.Gate{Name: g, Plugins: with(was.Plugins, name), Present: true}
			}
		}
	}
	st.Peers = slices.SortedFunc(maps.Values(peers), func(a, b event.Peer) int { return cmp.Compare(a.Name, b.Name) })
	st.Gates = slices.SortedFunc(maps.Values(gates), func(a, b event.Gate) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// peerName returns who a connection is; it is empty for ourselves, and for who
// has not said it yet.
func peerName(c *server.ConnInfo) string {
	plugin, isPlugin := strings.CutPrefix(c.Account, Plugin{}.account())
	switch {
	case strings.HasPrefix(c.AuthorizedUser, roleBus+"."): // answers what the plugin reads
		return ""
	case isPlugin: // by its uid or its key
		return plugin
	case c.Account == accountLeaf && c.AuthorizedUser != roleLeaf:
		return nameFleet
	case c.AuthorizedUser == roleBus || c.AuthorizedUser == roleLeaf:
		return ""
	}
	return c.AuthorizedUser
}

// gateOf returns the gate that a subscription answers. One to more subjects
// than one only listens.
func gateOf(subject string) (string, bool) {
	token, ok := strings.CutPrefix(subject, subjectGates)
	name := strings.ReplaceAll(token, "%2E", ".")
	return name, ok && !strings.Contains(token, ".") && ident.Check(name) == nil
}

func with(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	names = append(slices.Clone(names), name)
	slices.Sort(names)
	return names
}
