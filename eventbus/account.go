package eventbus

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/gantryd/gantry/services/event/eventnats"
)

// Accounts of the server are rooms without doors: a message stays in the one in
// which it was published, but for what one exports and another imports. The
// node has one, and each plugin has its own.
const accountNode = "GANTRY"

// Subjects that are not events.
const (
	subjectRead  = eventnats.ReadSubject // the past is asked for here
	subjectGates = "gantry.v1.gate."     // and a gate's name
	inboxes      = "_INBOX.>"            // answers
)

// subjectOfGate returns where a gate is asked.
func subjectOfGate(name string) string { return subjectGates + strings.ReplaceAll(name, ".", "%2E") }

// What an account of a plugin may use of the server, whatever it does.
const (
	pluginConnections   = 16
	pluginSubscriptions = 64 // of a connection

	// gateTime is how long a gate may think before the server forgets who
	// asked.
	gateTime = 2 * time.Minute
)

// An export, import or account as the server's configuration spells it.
type (
	export struct {
		Stream    string   `json:"stream,omitempty"`
		Service   string   `json:"service,omitempty"`
		Accounts  []string `json:"accounts"`
		Threshold string   `json:"response_threshold,omitempty"`
	}
	source struct {
		Account string `json:"account"`
		Subject string `json:"subject"`
	}
	imported struct {
		Stream  *source `json:"stream,omitempty"`
		Service *source `json:"service,omitempty"`
		To      string  `json:"to,omitempty"`
	}
	account struct {
		Limits  map[string]int `json:"limits,omitempty"`
		Exports []export       `json:"exports,omitempty"`
		Imports []imported     `json:"imports,omitempty"`
	}
)

// accounts returns the server's configuration of them. Its options cannot say
// the same in Go.
func accounts(cfg Config) (string, error) {
	var node account
	all := make(map[string]*account, len(cfg.Plugins)+2)
	for _, p := range cfg.Plugins {
		// What is said is not limited: the bus itself says there what the plugin
		// reads.
		own := &account{Limits: map[string]int{
			"max_connections":   pluginConnections + 1, // and the bus
			"max_subscriptions": pluginSubscriptions,
			"max_leafnodes":     0,
		}}
		for _, s := range p.Subscribe {
			node.exportStream(s, p.account())
			own.Imports = append(own.Imports, imported{Stream: &source{accountNode, s}})
		}
		for _, g := range p.Gates {
			gate := subjectOfGate(g)
			own.Exports = append(own.Exports, export{Service: gate, Accounts: []string{accountNode}, Threshold: gateTime.String()})
			node.Imports = append(node.Imports, imported{Service: &source{p.account(), gate}})
		}
		all[p.account()] = own
	}
	all[accountNode] = &node
	if cfg.Leaf.URL != "" {
		all[accountLeaf] = cfg.Leaf.account()
	}
	return spell(map[string]any{"accounts": all})
}

// spell writes JSON that is also the server's language, which has no \u003e.
func spell(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.String(), err
}

// exportStream exports a subject to one account more: a subject has one export.
func (a *account) exportStream(subject, to string) {
	i := slices.IndexFunc(a.Exports, func(e export) bool { return e.Stream == subject })
	if i < 0 {
		a.Exports = append(a.Exports, export{Stream: subject, Accounts: []string{to}})
		return
	}
	a.Exports[i].Accounts = append(a.Exports[i].Accounts, to)
}
