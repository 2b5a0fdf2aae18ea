// Package suite is the map of the suite as data: which daemons there are, which
// sockets they listen on, which services they answer, and what each says of
// itself.
package suite

import (
	"context"
	"path/filepath"
	"slices"
	"time"
)

// The daemons, by name. The name is that of the executable, the socket, the
// state directory, the config file and the systemd unit.
const (
	Contentd  = "contentd"
	Snapshotd = "snapshotd"
	Imaged    = "imaged"
	Taskd     = "taskd"
	Eventbus  = "eventbus"
	Gatewayd  = "gatewayd"
)

// The plugins that come with the suite. They are no daemons of it, which does
// without them, but are named and described like them.
const (
	Netd = "netd"
	Dnsd = "dnsd"
)

// A Daemon is one process of the suite.
type Daemon struct {
	Name    string
	User    string   // whom it runs as where systemd starts it
	Does    string   // one line for people
	Public  []string // gRPC services that it answers to clients too: containerd's API, and what that cannot say
	Private []string // services of ours, for other daemons and the CLI
	Tells   []string // nouns of its events: the first part of their topics
}

// Sockets is where daemons listen unless told otherwise.
const Sockets = "/run/gantry"

// Address is the public door: the one address that clients dial and that every
// shim is given. It is hashed into the names of shims' sockets, so that it must
// not change while containers run.
const Address = "/run/gantry/gantry.sock"

// Socket returns the path of a daemon's gRPC socket in dir.
func Socket(dir, daemon string) string { return filepath.Join(dir, daemon+".sock") }

// BlobsSocket returns the path of contentd's socket of files in dir, on which no
// gRPC is spoken.
func BlobsSocket(dir string) string { return filepath.Join(dir, Contentd+".blobs.sock") }

// NATSSocket returns the path of the bus's NATS socket in dir.
func NATSSocket(dir string) string { return filepath.Join(dir, "nats.sock") }

// ShimSocket returns the path of the ttrpc socket to which shims send their
// events. containerd's rule is the public address with ".ttrpc".
func ShimSocket(address string) string { return address + ".ttrpc" }

// ContentPlugin is the type and id of contentd's plugin that clients look for.
// It exports where the store hands out files, for clients who may, on the same
// machine: the socket, and what the store is called there. Who reaches another
// suite's socket at that path is told so by the name.
const (
	ContentPlugin     = "io.containerd.content.v1"
	ContentPluginID   = "content"
	ExportBlobsSocket = "gantry.blobs.socket"
	ExportBlobsStore  = "gantry.blobs.store"
)

// A Plugin is a part of a daemon as containerd's clients look for it. The types
// and ids are containerd's.
type Plugin struct {
	Type         string            `json:"type"`
	ID           string            `json:"id"`
	Requires     []string          `json:"requires,omitempty"`
	Platforms    []string          `json:"platforms,omitempty"` // "linux/amd64"
	Exports      map[string]string `json:"exports,omitempty"`
	Capabilities []string          `json:"capabilities,omitempty"`
	Skip         string            `json:"skip,omitempty"` // why it is not there, if it is not
}

// A Description is what a daemon says of itself.
type Description struct {
	Daemon  string
	Version string
	Pid     int
	Started time.Time
	Memory  int64 // bytes of resident memory
	Plugins []Plugin
	Outbox  *Outbox // nil of a daemon that has none
}

// An Outbox is the events of a daemon that the bus has not taken yet.
type Outbox struct {
	Depth  int       // how many
	Oldest time.Time // zero if there is none
	Away   time.Time // since when the bus does not take them; zero if it does
}

// A Describer is a daemon that is asked about itself.
type Describer interface {
	Describe(ctx context.Context) (Description, error)
}

// Daemons are the processes of the suite. The order is for people; nothing
// depends on it.
var Daemons = []Daemon{
	{
		Name:   Contentd,
		User:   "gantry-content",
		Does:   "keeps blobs",
		Public: []string{"containerd.services.content.v1.Content"},
		Private: []string{
			"gantry.lease.v1.Members", "gantry.namespace.v1.Holder", "gantry.gc.v1.Owner",
			"gantry.fsck.v1.Checker", "gantry.backup.v1.Keeper", "gantry.content.v1.Usage", "gantry.content.v1.Handles",
		},
		Tells: []string{"content"},
	},
	{
		Name: Snapshotd,
		User: "root",
		Does: "keeps snapshots, applies layers",
		Public: []string{
			"containerd.services.snapshots.v1.Snapshots",
			"containerd.services.diff.v1.Diff",
			"containerd.services.mounts.v1.Mounts",
			"gantry.unpack.v1.Unpacker",
		},
		Private: []string{
			"gantry.lease.v1.Members", "gantry.namespace.v1.Holder", "gantry.gc.v1.Owner",
			"gantry.fsck.v1.Checker", "gantry.backup.v1.Keeper", "gantry.snapshot.v1.Usage",
		},
		Tells: []string{"snapshot"},
	},
	{
		Name: Imaged,
		User: "gantry-image",
		Does: "keeps images, leases and namespaces",
		Public: []string{
			"containerd.services.images.v1.Images",
			"containerd.services.leases.v1.Leases",
			"containerd.services.namespaces.v1.Namespaces",
			"containerd.services.transfer.v1.Transfer",
			"containerd.services.streaming.v1.Streaming",
		},
		Private: []string{"gantry.lease.v1.Registry"},
		Tells:   []string{"images", "namespaces"},
	},
	{
		Name: Taskd,
		User: "root",
		Does: "keeps containers and runs tasks",
		Public: []string{
			"containerd.services.containers.v1.Containers",
			"containerd.services.tasks.v1.Tasks",
			"containerd.services.sandbox.v1.Store",
			"containerd.services.sandbox.v1.Controller",
		},
		Private: []string{"gantry.namespace.v1.Holder", "gantry.gate.v1.Lobby"},
		Tells:   []string{"containers", "tasks", "sandboxes"},
	},
	{
		Name:    Eventbus,
		User:    "gantry-events",
		Does:    "carries events",
		Public:  []string{"containerd.services.events.v1.Events"},
		Private: []string{"gantry.bus.v1.Bus"},
	},
	{
		Name: Gatewayd,
		User: "gantry",
		Does: "is the public door",
		Public: []string{
			"containerd.services.version.v1.Version",
			"containerd.services.introspection.v1.Introspection",
		},
	},
}

// Plugins are those that come with the suite.
var Plugins = []Daemon{
	{Name: Netd, User: "root", Does: "connects containers to networks"},
	{Name: Dnsd, User: "gantry-dns", Does: "answers for names of containers"},
}

// IsPlugin says whether a plugin that comes with the suite has that name.
func IsPlugin(name string) bool {
	return slices.ContainsFunc(Plugins, func(p Daemon) bool { return p.Name == name })
}

// ByName returns the daemon of that name.
func ByName(name string) (Daemon, bool) {
	for _, d := range Daemons {
		if d.Name == name {
			return d, true
		}
	}
	return Daemon{}, false
}

// Owner returns the daemon that answers a public service.
func Owner(service string) (Daemon, bool) {
	for _, d := range Daemons {
		if slices.Contains(d.Public, service) {
			return d, true
		}
	}
	return Daemon{}, false
}
