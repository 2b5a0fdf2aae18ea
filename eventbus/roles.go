package eventbus

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/suite"
)

// The roles of connections, besides one per daemon under its name and one per
// plugin.
const (
	roleBus      = "bus"      // ourselves: everything
	roleOperator = "operator" // root, and our own user
	roleLeaf     = "leaf"     // who tells the fleet

	nameFleet = "fleet" // what operators call the fleet
)

// A role is what a connection may do.
type role struct {
	name    string
	account string
	may     *server.Permissions // nil is everything
	free    chan struct{}       // holds one for each connection there is

	// secret is known to this process only: it is put into the peer's
	// greeting on its way to the server.
	secret string

	in *server.Account // that of the running server
}

// roles say who is what.
type roles struct {
	byName map[string]*role
	byUID  map[uint32]*role
	byKey  map[string]*role // public
}

// newRoles finds out which uids have a role. One that has none is nobody.
func newRoles(cfg Config, log *slog.Logger) (*roles, error) {
	r := &roles{byName: make(map[string]*role), byUID: make(map[uint32]*role), byKey: make(map[string]*role)}
	shared := make(chan struct{}, connectionsMax)
	r.add(role{name: roleBus, account: accountNode, free: shared})
	operator := r.add(role{name: roleOperator, account: accountNode, free: shared, may: operatorMay()})
	for _, d := range suite.Daemons {
		own := r.add(role{name: d.Name, account: accountNode, free: shared, may: daemonMay(d)})
		if uid, err := uidOf(d.User); err == nil {
			r.byUID[uid] = own
		}
	}
	r.byUID[0] = operator
	r.byUID[uint32(os.Geteuid())] = operator
	if cfg.Leaf.URL != "" {
		node, err := cfg.Leaf.node()
		if err != nil {
			return nil, err
		}
		r.add(role{name: roleLeaf, account: accountLeaf, may: mayForward(node)})
	}
	for _, p := range cfg.Plugins {
		r.add(role{name: readerOf(p), account: p.account(), may: answersMay()})
		own := r.add(role{
			name: p.account(), account: p.account(), may: p.permissions(),
			free: make(chan struct{}, pluginConnections),
		})
		if p.NKey != "" {
			r.byKey[p.NKey] = own
			continue
		}
		uid, err := uidOf(p.User)
		if err != nil {
			log.Info("a plugin cannot connect until its user is there and the bus starts again", "plugin", p.Name, "user", p.User, "err", err)
			continue
		}
		if other, ok := r.byUID[uid]; ok {
			return nil, fmt.Errorf("plugin %s: user %s is %s already: %w", p.Name, p.User, other.name, errdefs.ErrInvalidArgument)
		}
		r.byUID[uid] = own
	}
	return r, nil
}

func (r *roles) add(own role) *role {
	own.secret = rand.Text()
	r.byName[own.name] = &own
	return &own
}

// uidOf returns the uid of a user, by name or number.
func uidOf(name string) (uint32, error) {
	uid, err := strconv.ParseUint(name, 10, 32)
	if err == nil {
		return uint32(uid), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	uid, err = strconv.ParseUint(u.Uid, 10, 32)
	return uint32(uid), err
}

// in finds the accounts of the roles in the server.
func (r *roles) in(s *server.Server) error {
	var errs []error
	for _, own := range r.byName {
		var err error
		own.in, err = s.LookupAccount(own.account)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Check lets a connection in under the role whose secret it has, or whose key. It
// implements the server's interface for that.
func (r *roles) Check(c server.ClientAuthentication) bool {
	own := r.greeted(c.GetOpts(), c.GetNonce())
	if own == nil || own.in == nil {
		return false
	}
	// The account may refuse it, without a word to us. It has the permissions
	// by then.
	c.RegisterUser(&server.User{Username: own.name, Permissions: own.may})
	c.RegisterUser(&server.User{Username: own.name, Permissions: own.may, Account: own.in})
	return true
}

// greeted returns the role of a greeting, or nil.
func (r *roles) greeted(o *server.ClientOpts, nonce []byte) *role {
	if o.Nkey == "" {
		own := r.byName[o.Username]
		if own == nil || subtle.ConstantTimeCompare([]byte(o.Password), []byte(own.secret)) == 0 {
			return nil
		}
		return own
	}
	key, err := nkeys.FromPublicKey(o.Nkey)
	if err != nil || len(nonce) == 0 {
		return nil
	}
	// Clients differ in how they write it.
	signature, err := base64.RawURLEncoding.DecodeString(o.Sig)
	if err != nil {
		signature, err = base64.StdEncoding.DecodeString(o.Sig)
	}
	if err != nil {
		return nil
	}
	if err := key.Verify(nonce, signature); err != nil {
		return nil
	}
	return r.byKey[o.Nkey]
}

func operatorMay() *server.Permissions {
	return &server.Permissions{
		Publish:   allowed([]string{eventnats.Publishing + ">", subjectGates + "*", subjectRead}),
		Subscribe: allowed([]string{"gantry.v1.>", inboxes}),
		Response:  &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
	}
}

// readerOf is what the bus is called in the account of a plugin, where it answers
// reads. A service that the account imports would do the same, but the server
// remembers each request to one for minutes, and a plugin asks as often as it
// likes.
func readerOf(p Plugin) string { return roleBus + "." + p.Name }

func answersMay() *server.Permissions {
	return &server.Permissions{Publish: allowed([]string{inboxes}), Subscribe: allowed([]string{subjectRead})}
}

func daemonMay(d suite.Daemon) *server.Permissions {
	var publish []string
	for _, noun := range d.Tells {
		publish = append(publish, eventnats.Publishing+"*."+noun+".>")
	}
	// What it subscribes to is its own acknowledgements.
	return &server.Permissions{Publish: allowed(publish), Subscribe: allowed([]string{eventnats.AnswersTo(d.Name) + ".>"})}
}

// allowed allows the subjects and nothing else; an empty list of the server's
// would allow everything.
func allowed(subjects []string) *server.SubjectPermission {
	if len(subjects) == 0 {
		return &server.SubjectPermission{Deny: []string{">"}}
	}
	return &server.SubjectPermission{Allow: subjects}
}
