package suite

import "context"

// A Server says which process answers clients.
type Server struct {
	UUID         string // of the node's state; made once
	Pid          int
	PidNamespace uint64 // inode of the pid namespace, as of /proc/self/ns/pid
}

// A Version is what clients are told that they talk to.
type Version struct {
	Version  string // a semantic version of containerd's API, with "v"
	Revision string
}

// A Node is what clients may ask about the suite as a whole.
type Node interface {
	// Version returns what clients compare before they use a feature.
	Version(ctx context.Context) (Version, error)

	// Server returns which process answers.
	Server(ctx context.Context) (Server, error)

	// Plugins returns the parts of the suite that match one of the filters, or
	// all, in the order of Daemons. The fields are "type" and "id". Of a daemon
	// that is away it returns what was last known. A filter that does not
	// parse is [errdefs.ErrInvalidArgument].
	Plugins(ctx context.Context, filters ...string) ([]Plugin, error)

	// Plugin returns one part: [errdefs.ErrNotFound] if there is none of that
	// type and id.
	Plugin(ctx context.Context, typ, id string) (Plugin, error)
}
