package eventbus

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/suite"
)

// A Plugin is a program that is no part of the suite and may follow some of its
// events, and be asked before some of its containers start. What is not here
// it may not.
type Plugin struct {
	Name      string   `toml:"name"`
	User      string   `toml:"user"`      // who connects as the plugin to the socket: a name or a number
	NKey      string   `toml:"nkey"`      // instead of a user: whose key connects as the plugin by TCP
	Subscribe []string `toml:"subscribe"` // subjects of events: gantry.v1.<namespace>.<noun>.<verb>, with wildcards
	Gates     []string `toml:"gates"`     // names of the gates that it answers
}

const (
	pluginsMax = 64
	grantsMax  = 64 // of subjects, and of gates, of a plugin

	// eventTokens is how many parts the subject of an event has at least. A
	// wildcard with fewer would be for gates too.
	eventTokens = 5
)

var (
	pluginName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	userName   = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}$`)
)

// checkPlugins returns every mistake in the table.
func checkPlugins(plugins []Plugin, tcp TCP) error {
	var errs []error
	if len(plugins) > pluginsMax {
		errs = append(errs, fmt.Errorf("plugins: %d are more than %d", len(plugins), pluginsMax))
	}
	names, users, gates := make(map[string]bool), make(map[string]string), make(map[string]string)
	for i, p := range plugins {
		wrong := func(format string, a ...any) {
			errs = append(errs, fmt.Errorf("plugins[%d] (%q): %w", i, p.Name, fmt.Errorf(format, a...)))
		}
		if !pluginName.MatchString(p.Name) {
			wrong("name: want 1 to 32 of a-z, 0-9 and, within, -")
		} else if names[p.Name] {
			wrong("name: there are two")
		} else if _, ok := suite.ByName(p.Name); ok || p.Name == roleOperator || p.Name == nameFleet {
			wrong("name: there is one of the suite's own")
		}
		names[p.Name] = true
		switch {
		case p.User != "" && p.NKey != "":
			wrong("user, nkey: want one of them")
		case p.NKey != "":
			p.checkNKey(users, tcp, wrong)
		default:
			p.checkUser(users, wrong)
		}
		p.checkSubjects(wrong)
		p.checkGates(gates, wrong)
	}
	return errors.Join(errs...)
}

func (p Plugin) checkUser(seen map[string]string, wrong func(string, ...any)) {
	uid, err := strconv.ParseUint(p.User, 10, 32)
	switch other, again := seen[p.User]; {
	case !userName.MatchString(p.User):
		wrong("user: %q is neither a name nor a number", p.User)
	case p.User == "root" || err == nil && uid == 0:
		wrong("user: root may do everything already")
	case again:
		wrong("user: %q is plugin %q already; a peer is one plugin", p.User, other)
	}
	seen[p.User] = p.Name
}

func (p Plugin) checkNKey(seen map[string]string, tcp TCP, wrong func(string, ...any)) {
	switch other, again := seen[p.NKey]; {
	case !nkeys.IsValidPublicUserKey(p.NKey):
		wrong("nkey: %q is not the public key of a user (U…)", p.NKey)
	case tcp.Listen == "":
		wrong("nkey: there is no tcp.listen to connect to")
	case again:
		wrong("nkey: it is that of plugin %q already; a peer is one plugin", other)
	}
	seen[p.NKey] = p.Name
}

func (p Plugin) checkSubjects(wrong func(string, ...any)) {
	if len(p.Subscribe) > grantsMax {
		wrong("subscribe: %d are more than %d", len(p.Subscribe), grantsMax)
		return
	}
	for i, s := range p.Subscribe {
		if !ofEvents(s) {
			wrong("subscribe: %q is not of events; all of them are gantry.v1.*.*.>", s)
			continue
		}
		for _, other := range p.Subscribe[:i] {
			// Whoever subscribes to what both have would be told twice.
			if ofEvents(other) && server.SubjectsCollide(s, other) {
				wrong("subscribe: %q and %q overlap", other, s)
			}
		}
	}
}

// ofEvents says whether a subject, which may have wildcards, is one of events
// and of nothing else.
func ofEvents(subject string) bool {
	tokens := strings.Split(subject, ".")
	printable := !strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	return len(subject) <= 256 && printable && server.IsValidSubject(subject) &&
		len(tokens) >= eventTokens && tokens[0] == "gantry" && tokens[1] == "v1"
}

func (p Plugin) checkGates(seen map[string]string, wrong func(string, ...any)) {
	if len(p.Gates) > grantsMax {
		wrong("gates: %d are more than %d", len(p.Gates), grantsMax)
		return
	}
	for _, g := range p.Gates {
		switch other, again := seen[g]; {
		case ident.Check(g) != nil:
			wrong("gates: %v", ident.Check(g))
		case again:
			wrong("gates: %q is that of plugin %q already; a gate has one who answers", g, other)
		}
		seen[g] = p.Name
	}
}

// What a plugin is called among the server's accounts and users.
func (p Plugin) account() string { return "plugin." + p.Name }

// permissions are what a plugin may say within its account, into which no more
// comes than was granted.
func (p Plugin) permissions() *server.Permissions {
	may := &server.Permissions{
		Publish:   allowed([]string{subjectRead}),
		Subscribe: allowed(append(slices.Clone(p.Subscribe), inboxes)),
	}
	for _, g := range p.Gates {
		may.Subscribe.Allow = append(may.Subscribe.Allow, subjectOfGate(g))
		may.Response = &server.ResponsePermission{MaxMsgs: 1, Expires: gateTime}
	}
	return may
}
