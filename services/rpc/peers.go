package rpc

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/suite"
)

// Operator is the role of root and of the members of the operators' group, who
// may call everything. The other roles are the names of the daemons, and of the
// plugins that come with the suite. A process that runs as the user of one has
// its role and no other, whatever its groups; root is the operator also where a
// daemon runs as root.
const Operator = "operator"

// OperatorGroup is the group whose members are operators, unless a server says
// otherwise.
const OperatorGroup = "gantry"

// Anyone is the caller of a rule for every daemon, of which plugins are none, and
// AnyDaemon the daemon of a rule for every server.
const (
	Anyone    = "every daemon"
	AnyDaemon = "*"
)

// A Rule lets a caller call methods of a daemon. What no rule lets is denied.
type Rule struct {
	Caller  string   // a daemon, a plugin that comes with the suite, or Anyone
	Daemon  string   // whose server is called, or AnyDaemon
	Methods []string // "/service/Method", or "/service/" for all of a service
}

// contentWriting is what reads and writes blobs but deletes none.
var contentWriting = []string{
	"/containerd.services.content.v1.Content/Info",
	"/containerd.services.content.v1.Content/Read",
	"/containerd.services.content.v1.Content/Status",
	"/containerd.services.content.v1.Content/Write",
	"/containerd.services.content.v1.Content/Abort",
	"/containerd.services.content.v1.Content/Update",
}

// contentHandles is the same, and faster: what is asked on [suite.BlobsSocket].
var contentHandles = []string{
	"/gantry.content.v1.Handles/Open",
	"/gantry.content.v1.Handles/Write",
}

// Rules is who may call whom, but for operators, who may call everything. The
// gateway may call every daemon's public services; that part of the table
// follows from [suite.Daemons].
var Rules = append(gatewayRules(), []Rule{
	{Anyone, AnyDaemon, []string{"/grpc.health.v1.Health/", "/gantry.daemon.v1.Daemon/Describe"}},
	{Anyone, suite.Imaged, []string{
		"/gantry.lease.v1.Registry/Lookup",
		"/containerd.services.namespaces.v1.Namespaces/Get",
		"/containerd.services.namespaces.v1.Namespaces/List",
	}},
	{suite.Imaged, suite.Contentd, []string{
		"/containerd.services.content.v1.Content/",
		"/gantry.lease.v1.Members/",
		"/gantry.namespace.v1.Holder/",
		"/gantry.gc.v1.Owner/",
	}},
	{suite.Imaged, suite.Contentd, contentHandles},
	{suite.Imaged, suite.Snapshotd, []string{
		"/containerd.services.snapshots.v1.Snapshots/",
		"/containerd.services.diff.v1.Diff/",
		"/gantry.unpack.v1.Unpacker/",
		"/gantry.lease.v1.Members/",
		"/gantry.namespace.v1.Holder/",
		"/gantry.gc.v1.Owner/",
	}},
	{suite.Imaged, suite.Taskd, []string{"/gantry.namespace.v1.Holder/"}},
	{suite.Snapshotd, suite.Contentd, contentWriting},
	{suite.Snapshotd, suite.Contentd, contentHandles},
	{suite.Taskd, suite.Contentd, contentWriting},
	{suite.Taskd, suite.Contentd, contentHandles},
	{suite.Taskd, suite.Snapshotd, []string{"/containerd.services.mounts.v1.Mounts/"}},
	{suite.Dnsd, suite.Taskd, []string{
		"/containerd.services.containers.v1.Containers/Get",
		"/containerd.services.containers.v1.Containers/List",
		"/containerd.services.containers.v1.Containers/ListStream", // the same, and longer than a message
		"/containerd.services.tasks.v1.Tasks/Get",
		"/containerd.services.tasks.v1.Tasks/List",
	}},
	// What taskd is asked for it is asked by namespace.
	{suite.Dnsd, suite.Imaged, []string{"/containerd.services.namespaces.v1.Namespaces/List"}},
}...)

func gatewayRules() []Rule {
	var rules []Rule
	for _, d := range suite.Daemons {
		if d.Name == suite.Gatewayd {
			continue
		}
		r := Rule{Caller: suite.Gatewayd, Daemon: d.Name}
		for _, service := range d.Public {
			r.Methods = append(r.Methods, "/"+service+"/")
		}
		rules = append(rules, r)
	}
	return rules
}

// May says whether a caller of that role may call a method of a daemon's
// server.
func May(role, daemon, method string) bool {
	service, name := split(method)
	if service == "" || name == "" {
		return false
	}
	if role == Operator {
		return true
	}
	_, isDaemon := suite.ByName(role)
	if !isDaemon && !suite.IsPlugin(role) {
		return false
	}
	return slices.ContainsFunc(Rules, func(r Rule) bool {
		return (r.Caller == role || isDaemon && r.Caller == Anyone) &&
			(r.Daemon == daemon || r.Daemon == AnyDaemon) &&
			slices.ContainsFunc(r.Methods, func(m string) bool {
				return m == method || strings.HasSuffix(m, "/") && m == "/"+service+"/"
			})
	})
}

// WithOperators is an option of [NewServer]: the group whose members are
// operators there. Without it that is OperatorGroup.
func WithOperators(group string) grpc.ServerOption { return operatorsOption{group: group} }

type operatorsOption struct {
	grpc.EmptyServerOption
	group string
}

// A policy is the table with the users and groups of this machine.
type policy struct {
	daemon    string
	own       uint32            // user of this process
	users     map[uint32]string // daemon or plugin of a user other than root
	operators map[uint32]bool   // groups
}

func newPolicy(daemon string, o []grpc.ServerOption) policy {
	group := OperatorGroup
	for _, option := range o {
		if op, ok := option.(operatorsOption); ok {
			group = op.group
		}
	}
	p := policy{
		daemon:    daemon,
		own:       uint32(os.Geteuid()),
		users:     map[uint32]string{},
		operators: map[uint32]bool{},
	}
	for _, d := range slices.Concat(suite.Daemons, suite.Plugins) {
		if u, err := user.Lookup(d.User); err == nil {
			if uid, ok := id(u.Uid); ok && uid != 0 {
				p.users[uid] = d.Name
			}
		}
	}
	if g, err := user.LookupGroup(group); err == nil {
		if gid, ok := id(g.Gid); ok {
			p.operators[gid] = true
		}
	}
	return p
}

func id(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

// role returns what a peer is here; nothing is an empty role.
func (p policy) role(who Peer) string {
	switch {
	case who.Own, who.UID == 0:
		return Operator
	case p.users[who.UID] != "":
		return p.users[who.UID]
	case who.UID == p.own:
		// A suite of one unprivileged user: who runs as the daemon's user can
		// do to it whatever it likes anyway.
		return Operator
	case p.operators[who.GID], slices.ContainsFunc(who.Groups, func(g uint32) bool { return p.operators[g] }):
		return Operator
	}
	return ""
}

// check is [errdefs.ErrPermissionDenied] unless the peer of the call may make
// it.
func (p policy) check(ctx context.Context, method string) error {
	who, ok := PeerOf(ctx)
	if !ok {
		return fmt.Errorf("unknown peer may not call %q: %w", method, errdefs.ErrPermissionDenied)
	}
	return p.allow(who, method)
}

// allow is [errdefs.ErrPermissionDenied] unless who may call method.
func (p policy) allow(who Peer, method string) error {
	role := p.role(who)
	if May(role, p.daemon, method) {
		return nil
	}
	if role == "" {
		role = "nobody of the suite"
	}
	return fmt.Errorf("uid %d (%s) may not call %q of %s: %w", who.UID, role, method, p.daemon, errdefs.ErrPermissionDenied)
}
