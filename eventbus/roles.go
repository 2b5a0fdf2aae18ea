package eventbus

import (
	"crypto/rand"
	"os"
	"os/user"
	"strconv"

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

// users are the roles as the server knows them.
func (r roles) users() []*server.User {
	users := []*server.User{
		{Username: roleBus, Password: r.secrets[roleBus]},
		{Username: roleOperator, Password: r.secrets[roleOperator], Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				"gantry.v1.>",
				"$JS.API.INFO", "$JS.API.STREAM.INFO." + eventnats.Stream,
				// Consumers without a name of their own, which end with
				// their reader. One could write elsewhere by them, as
				// root can anyway.
				"$JS.API.CONSUMER.*." + eventnats.Stream + ".>", "$JS.API.CONSUMER.MSG.NEXT." + eventnats.Stream + ".>",
				"$JS.API.DIRECT.GET." + eventnats.Stream + ".>", "$JS.FC.>",
			}},
			Subscribe: &server.SubjectPermission{Allow: []string{"gantry.v1.>", "_INBOX.>"}},
		}},
		{Username: rolePlugin, Password: r.secrets[rolePlugin], Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: []string{">"}},
			Subscribe: allowed(r.plugins),
		}},
	}
	for _, d := range suite.Daemons {
		var publish []string
		for _, noun := range nouns[d.Name] {
			publish = append(publish, "gantry.v1.*."+noun+".>")
		}
		users = append(users, &server.User{Username: d.Name, Password: r.secrets[d.Name], Permissions: &server.Permissions{
			Publish:   allowed(publish),
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}, // the acknowledgements
		}})
	}
	return users
}

// allowed allows the subjects and nothing else; an empty list of the server's
// would allow everything.
func allowed(subjects []string) *server.SubjectPermission {
	if len(subjects) == 0 {
		return &server.SubjectPermission{Deny: []string{">"}}
	}
	return &server.SubjectPermission{Allow: subjects}
}
