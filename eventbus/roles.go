package eventbus

import (
	"crypto/rand"
	"crypto/subtle"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/suite"
)

// The roles of connections, besides a role per daemon under its name.
const (
	roleBus      = "bus"      // ourselves: everything
	roleOperator = "operator" // root, and our own user
	rolePlugin   = "plugin"   // whoever else the socket lets in
)

// nouns are what each daemon tells of: the first part of its topics.
var nouns = map[string][]string{
	suite.Contentd:  {"content"},
	suite.Snapshotd: {"snapshot"},
	suite.Imaged:    {"images", "namespaces"},
	suite.Taskd:     {"containers", "tasks", "sandboxes"},
}

// roles say what a peer may do. A role's secret is known to this process only:
// it is put into the peer's greeting on its way to the server.
type roles struct {
	byUID   map[uint32]string
	secrets map[string]string
	plugins []string
}

func newRoles(cfg Config) roles {
	r := roles{byUID: make(map[uint32]string), secrets: make(map[string]string), plugins: cfg.Plugins}
	for _, name := range []string{roleBus, roleOperator, rolePlugin} {
		r.secrets[name] = rand.Text()
	}
	for _, d := range suite.Daemons {
		r.secrets[d.Name] = rand.Text()
		if u, err := user.Lookup(d.User); err == nil {
			if uid, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
				r.byUID[uint32(uid)] = d.Name
			}
		}
	}
	r.byUID[0] = roleOperator
	r.byUID[uint32(os.Geteuid())] = roleOperator
	return r
}

func (r roles) of(uid uint32) string {
	if name, ok := r.byUID[uid]; ok {
		return name
	}
	return rolePlugin
}

// Check lets a connection in under the role whose secret it has. It implements
// the server's interface for that.
func (r roles) Check(c server.ClientAuthentication) bool {
	role, given := c.GetOpts().Username, c.GetOpts().Password
	secret, ok := r.secrets[role]
	if !ok || subtle.ConstantTimeCompare([]byte(given), []byte(secret)) == 0 {
		return false
	}
	c.RegisterUser(&server.User{Username: role, Permissions: r.permissions(role)})
	return true
}

// permissions are what a role may publish and subscribe to.
func (r roles) permissions(role string) *server.Permissions {
	switch role {
	case roleBus:
		return nil
	case roleOperator:
		return &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				"gantry.v1.>",
				"$JS.API.INFO", "$JS.API.STREAM.INFO." + eventnats.Stream,
				// Consumers that end with their reader. One could write
				// elsewhere by them, as root can anyway.
				"$JS.API.CONSUMER.*." + eventnats.Stream + ".>", "$JS.API.CONSUMER.MSG.NEXT." + eventnats.Stream + ".>",
				"$JS.API.DIRECT.GET." + eventnats.Stream, "$JS.FC.>",
			}},
			Subscribe: allowed([]string{"gantry.v1.>", "_INBOX.>"}),
			Response:  &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
		}
	case rolePlugin:
		return &server.Permissions{Publish: allowed(nil), Subscribe: allowed(r.plugins)}
	}
	var publish []string
	for _, noun := range nouns[role] {
		publish = append(publish, "gantry.v1.*."+noun+".>")
	}
	// What it subscribes to is the acknowledgements.
	return &server.Permissions{Publish: allowed(publish), Subscribe: allowed([]string{"_INBOX.>"})}
}

// allowed allows the subjects and nothing else; an empty list of the server's
// would allow everything.
func allowed(subjects []string) *server.SubjectPermission {
	if len(subjects) == 0 {
		return &server.SubjectPermission{Deny: []string{">"}}
	}
	return &server.SubjectPermission{Allow: subjects}
}
