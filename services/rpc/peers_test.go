package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/suite"
)

func TestWhoMayCallWhom(t *testing.T) {
	const (
		contentRead   = "/containerd.services.content.v1.Content/Read"
		contentWrite  = "/containerd.services.content.v1.Content/Write"
		contentDelete = "/containerd.services.content.v1.Content/Delete"
		handlesOpen   = "/gantry.content.v1.Handles/Open"
		handlesWrite  = "/gantry.content.v1.Handles/Write"
		members       = "/gantry.lease.v1.Members/AddMember"
		holder        = "/gantry.namespace.v1.Holder/Holdings"
		sweep         = "/gantry.gc.v1.Owner/Sweep"
		snapshots     = "/containerd.services.snapshots.v1.Snapshots/Prepare"
		mounts        = "/containerd.services.mounts.v1.Mounts/Activate"
		diff          = "/containerd.services.diff.v1.Diff/Apply"
		tasks         = "/containerd.services.tasks.v1.Tasks/Create"
		containers    = "/containerd.services.containers.v1.Containers/Get"
		images        = "/containerd.services.images.v1.Images/Get"
		leases        = "/containerd.services.leases.v1.Leases/Create"
		lookup        = "/gantry.lease.v1.Registry/Lookup"
		nsGet         = "/containerd.services.namespaces.v1.Namespaces/Get"
		nsDelete      = "/containerd.services.namespaces.v1.Namespaces/Delete"
		publish       = "/containerd.services.events.v1.Events/Publish"
		describe      = "/gantry.daemon.v1.Daemon/Describe"
		check         = "/grpc.health.v1.Health/Check"
		version       = "/containerd.services.version.v1.Version/Version"
	)
	for _, c := range []struct {
		role, daemon, method string
		may                  bool
	}{
		{suite.Gatewayd, suite.Contentd, contentRead, true},
		{suite.Gatewayd, suite.Contentd, contentDelete, true},
		{suite.Gatewayd, suite.Contentd, members, false},
		{suite.Gatewayd, suite.Contentd, holder, false},
		{suite.Gatewayd, suite.Contentd, sweep, false},
		{suite.Gatewayd, suite.Imaged, leases, true},
		{suite.Gatewayd, suite.Imaged, lookup, true}, // every daemon may
		{suite.Gatewayd, suite.Taskd, tasks, true},
		{suite.Gatewayd, suite.Eventbus, publish, true},
		{suite.Gatewayd, suite.Contentd, tasks, false},

		{suite.Imaged, suite.Contentd, contentDelete, true},
		{suite.Imaged, suite.Contentd, handlesOpen, true},
		{suite.Imaged, suite.Contentd, handlesWrite, true},
		{suite.Snapshotd, suite.Contentd, handlesOpen, true},
		{suite.Taskd, suite.Contentd, handlesWrite, true},
		{suite.Gatewayd, suite.Contentd, handlesOpen, false},
		{suite.Eventbus, suite.Contentd, handlesOpen, false},
		{suite.Snapshotd, suite.Imaged, handlesOpen, false},
		{Operator, suite.Contentd, handlesWrite, true},
		{suite.Imaged, suite.Contentd, members, true},
		{suite.Imaged, suite.Contentd, holder, true},
		{suite.Imaged, suite.Contentd, sweep, true},
		{suite.Imaged, suite.Snapshotd, snapshots, true},
		{suite.Imaged, suite.Snapshotd, diff, true},
		{suite.Imaged, suite.Snapshotd, mounts, false},
		{suite.Imaged, suite.Taskd, holder, true},
		{suite.Imaged, suite.Taskd, tasks, false},
		{suite.Imaged, suite.Taskd, containers, false},

		{suite.Snapshotd, suite.Contentd, contentWrite, true},
		{suite.Snapshotd, suite.Contentd, contentDelete, false},
		{suite.Snapshotd, suite.Contentd, members, false},
		{suite.Snapshotd, suite.Contentd, sweep, false},
		{suite.Snapshotd, suite.Taskd, tasks, false},
		{suite.Taskd, suite.Contentd, contentWrite, true},
		{suite.Taskd, suite.Contentd, contentDelete, false},
		{suite.Taskd, suite.Snapshotd, mounts, true},
		{suite.Taskd, suite.Snapshotd, snapshots, false},

		{suite.Contentd, suite.Imaged, lookup, true},
		{suite.Contentd, suite.Imaged, nsGet, true},
		{suite.Contentd, suite.Imaged, nsDelete, false},
		{suite.Contentd, suite.Imaged, images, false},
		{suite.Contentd, suite.Snapshotd, snapshots, false},
		{suite.Contentd, suite.Contentd, contentRead, false},
		{suite.Eventbus, suite.Taskd, tasks, false},
		{suite.Eventbus, suite.Taskd, describe, true},
		{suite.Eventbus, suite.Contentd, check, true},
		{suite.Contentd, suite.Gatewayd, version, false},
		{suite.Contentd, suite.Gatewayd, check, true},

		{suite.Dnsd, suite.Taskd, containers, true},
		{suite.Dnsd, suite.Taskd, "/containerd.services.containers.v1.Containers/List", true},
		{suite.Dnsd, suite.Taskd, "/containerd.services.containers.v1.Containers/ListStream", true},
		{suite.Dnsd, suite.Taskd, "/containerd.services.tasks.v1.Tasks/Get", true},
		{suite.Dnsd, suite.Taskd, "/containerd.services.tasks.v1.Tasks/List", true},
		{suite.Dnsd, suite.Imaged, "/containerd.services.namespaces.v1.Namespaces/List", true},
		{suite.Dnsd, suite.Taskd, "/containerd.services.containers.v1.Containers/Update", false},
		{suite.Dnsd, suite.Taskd, "/containerd.services.containers.v1.Containers/Delete", false},
		{suite.Dnsd, suite.Taskd, "/containerd.services.tasks.v1.Tasks/Kill", false},
		{suite.Dnsd, suite.Taskd, tasks, false},
		{suite.Dnsd, suite.Gatewayd, containers, false},
		{suite.Dnsd, suite.Imaged, nsGet, false}, // every daemon may, and it is none
		{suite.Dnsd, suite.Imaged, lookup, false},
		{suite.Dnsd, suite.Contentd, check, false},
		{suite.Dnsd, suite.Eventbus, publish, false},
		{suite.Netd, suite.Taskd, containers, false}, // it is root

		{Operator, suite.Contentd, contentDelete, true},
		{Operator, suite.Contentd, members, true},
		{Operator, "anything", "/made.up/Thing", true},

		{"", suite.Contentd, contentRead, false},
		{"", suite.Contentd, check, false},
		{Anyone, suite.Contentd, check, false},
		{"crid", suite.Contentd, check, false},
		{suite.Imaged, AnyDaemon, contentDelete, false},
	} {
		if got := May(c.role, c.daemon, c.method); got != c.may {
			t.Errorf("May(%q, %q, %q) = %t, want %t", c.role, c.daemon, c.method, got, c.may)
		}
	}
}

// TestRulesNameWhatThereIs finds rules that let nobody call anything: of a
// daemon or a service that the map of the suite does not have.
func TestRulesNameWhatThereIs(t *testing.T) {
	everywhere := []string{"grpc.health.v1.Health", "gantry.daemon.v1.Daemon"}
	for _, r := range Rules {
		if _, ok := suite.ByName(r.Caller); !ok && !suite.IsPlugin(r.Caller) && r.Caller != Anyone {
			t.Errorf("%+v: no such caller", r)
		}
		d, ok := suite.ByName(r.Daemon)
		if !ok && r.Daemon != AnyDaemon {
			t.Errorf("%+v: no such daemon", r)
		}
		for _, m := range r.Methods {
			service, _ := split(strings.TrimSuffix(m, "/") + "/x")
			if !strings.HasSuffix(m, "/") {
				service, _ = split(m)
			}
			if !slices.Contains(slices.Concat(d.Public, d.Private, everywhere), service) {
				t.Errorf("rule for %s: %s does not answer %q", r.Caller, r.Daemon, service)
			}
		}
	}
}

func TestMethodThatIsNotNormalIsDenied(t *testing.T) {
	for _, method := range []string{
		"", "/", "//", "///", "x",
		"grpc.health.v1.Health/Check",
		"//grpc.health.v1.Health/Check",
		"/grpc.health.v1.Health/Check/",
		"/grpc.health.v1.Health//Check",
		"/grpc.health.v1.Health/",
		"/grpc.health.v1.Health",
		"/grpc.health.v1.Health/Check/../../x/y",
		"/../grpc.health.v1.Health/Check",
	} {
		for _, role := range []string{Operator, suite.Imaged, suite.Gatewayd} {
			if May(role, suite.Contentd, method) {
				t.Errorf("%s may call %q", role, method)
			}
		}
	}
}

func TestRoles(t *testing.T) {
	p := policy{
		own:       990,
		users:     map[uint32]string{990: suite.Contentd, 991: suite.Imaged},
		operators: map[uint32]bool{700: true},
	}
	for _, c := range []struct {
		name string
		who  Peer
		want string
	}{
		{"root", Peer{UID: 0}, Operator},
		{"root in a daemon's group", Peer{UID: 0, GID: 991}, Operator},
		{"this process", Peer{UID: 990, Own: true}, Operator},
		{"a daemon", Peer{UID: 991}, suite.Imaged},
		{"a daemon in the operators' group", Peer{UID: 991, GID: 700, Groups: []uint32{700}}, suite.Imaged},
		{"another process of our user, which is a daemon's", Peer{UID: 990}, suite.Contentd},
		{"a member of the group", Peer{UID: 1000, GID: 1000, Groups: []uint32{4, 700}}, Operator},
		{"whose first group it is", Peer{UID: 1000, GID: 700}, Operator},
		{"a stranger", Peer{UID: 1000, GID: 1000, Groups: []uint32{4}}, ""},
		{"nobody", Peer{UID: 65534, GID: 65534}, ""},
		{"no credentials", Peer{UID: ^uint32(0), GID: ^uint32(0)}, ""},
	} {
		if got := p.role(c.who); got != c.want {
			t.Errorf("%s: role %q, want %q", c.name, got, c.want)
		}
	}
	p.own = 1000
	if got := p.role(Peer{UID: 1000}); got != Operator {
		t.Errorf("the user of a suite without root: role %q, want %q", got, Operator)
	}
}

// FuzzDefaultDeny holds the check against the table: what is allowed is spelled
// exactly as a rule spells it.
func FuzzDefaultDeny(f *testing.F) {
	for _, r := range Rules {
		for _, m := range r.Methods {
			f.Add(r.Caller, r.Daemon, m)
			f.Add(r.Caller, r.Daemon, m+"x")
			f.Add(r.Caller, r.Daemon, strings.TrimPrefix(m, "/"))
			f.Add("imaged", "contentd", "/"+m)
		}
	}
	f.Fuzz(func(t *testing.T, role, daemon, method string) {
		if !May(role, daemon, method) {
			return
		}
		if strings.Count(method, "/") != 2 || method[0] != '/' {
			t.Fatalf("May(%q, %q, %q): not a method", role, daemon, method)
		}
		if role == Operator {
			return
		}
		if _, ok := suite.ByName(role); !ok && !suite.IsPlugin(role) {
			t.Fatalf("May(%q, %q, %q): not a role", role, daemon, method)
		}
		service := method[:strings.LastIndex(method, "/")+1]
		for _, r := range Rules {
			for _, m := range r.Methods {
				if (r.Daemon == daemon || r.Daemon == AnyDaemon) && (m == method || m == service) {
					return
				}
			}
		}
		t.Fatalf("May(%q, %q, %q): no rule says so", role, daemon, method)
	})
}

// TestProcessOfAnotherUser starts itself again as other users and lets them
// call a server on a real socket.
func TestProcessOfAnotherUser(t *testing.T) {
	if as := os.Getenv("RPC_TEST_AS"); as != "" {
		callAs(t, as)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: calls as other users")
	}
	group, err := user.LookupGroup("games")
	if err != nil {
		t.Skip("needs a group games to stand for the operators")
	}
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	srv := NewServer(suite.Contentd, slog.New(slog.NewTextHandler(t.Output(), nil)), WithOperators(group.Name))
	srv.policy.users[61001] = suite.Imaged
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go srv.Serve(lis)
	defer srv.Stop()

	for _, c := range []struct {
		as   string // uid:gid:groups
		want string // kinds of: a health check, a call of Content/Delete, a made up one
	}{
		{"0:0:", "ok unimplemented unimplemented"},
		{"61000:61000:", "denied denied denied"},
		{"61000:61000:4,61000", "denied denied denied"},
		{"61000:61000:4," + group.Gid, "ok unimplemented unimplemented"},
		{"61000:" + group.Gid + ":", "ok unimplemented unimplemented"},
		{"61001:61001:" + group.Gid, "ok unimplemented denied"},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProcessOfAnotherUser$", "-test.v")
		cmd.Env = append(os.Environ(), "RPC_TEST_AS="+c.as, "RPC_TEST_SOCKET="+socket)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "answers: "+c.want+"\n") {
			t.Errorf("as %s: want answers: %s, got %v\n%s", c.as, c.want, err, out)
		}
	}
}

func callAs(t *testing.T, as string) {
	parts := strings.Split(as, ":")
	uid, _ := strconv.Atoi(parts[0])
	gid, _ := strconv.Atoi(parts[1])
	var groups []int
	for g := range strings.SplitSeq(parts[2], ",") {
		if n, err := strconv.Atoi(g); err == nil {
			groups = append(groups, n)
		}
	}
	for _, err := range []error{syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := Dial(os.Getenv("RPC_TEST_SOCKET"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var answers []string
	for _, method := range []string{"/grpc.health.v1.Health/Check", "/containerd.services.content.v1.Content/Delete", "/made.up/Thing"} {
		err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
		switch {
		case err == nil:
			answers = append(answers, "ok")
		case errdefs.IsPermissionDenied(err):
			answers = append(answers, "denied")
		case errdefs.IsNotImplemented(err):
			answers = append(answers, "unimplemented")
		default:
			answers = append(answers, err.Error())
		}
	}
	fmt.Println("answers:", strings.Join(answers, " "))
}

func TestConnectionThatIsNoUnixSocketIsRefused(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	c, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p, err := identify(c); err == nil {
		t.Errorf("a TCP connection has credentials %+v", p)
	}
}
