package task

import (
	"context"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/typed"
)

// A Shim is the process beside a container, as the one who started it or found
// it again sees it: one connection, and one task.
//
// The ids in its methods are those of the task. Promises that hold for every
// method:
//   - A call that the shim does not answer because the connection is gone is
//     [errdefs.ErrUnavailable]; Done is closed then.
//   - A call ends with its context, whatever the shim does.
//   - Methods may be called from any goroutine.
type Shim interface {
	ShimTask
	Processes

	// Info returns what the shim says of itself: [errdefs.ErrNotFound] if it
	// has no such task.
	Info(ctx context.Context, id string) (ShimInfo, error)

	// Shutdown asks the shim to end, which it does if it has no task left.
	Shutdown(ctx context.Context, id string) error

	// Done is closed when the connection is gone.
	Done() <-chan struct{}

	// Close closes the connection. The shim lives on.
	Close() error
}

// ShimTask is what a shim does with its task as a whole.
type ShimTask interface {
	// Create makes the container and returns the pid of its first process.
	Create(ctx context.Context, r ShimCreate) (pid uint32, err error)

	// Delete removes a stopped task: [errdefs.ErrFailedPrecondition] if it
	// runs.
	Delete(ctx context.Context, id string) (Exit, error)

	// Get returns a process; unlike [Tasks], it fails when the shim does not
	// answer.
	Get(ctx context.Context, id, exec string) (Process, error)

	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Pids(ctx context.Context, id string) ([]ProcessInfo, error)
	Update(ctx context.Context, id string, resources typed.Value, annotations map[string]string) error
	Checkpoint(ctx context.Context, id, path string, options *typed.Value) error
	Stats(ctx context.Context, id string) (*typed.Value, error)
}

// A ShimCreate says what a shim is to create.
type ShimCreate struct {
	ID         string
	Bundle     string // directory with config.json
	Rootfs     []mount.Mount
	IO         IO
	Checkpoint string // directory to restore from
	Options    *typed.Value
}

// A ShimInfo is what a shim says of itself.
type ShimInfo struct {
	ShimPid uint32
	TaskPid uint32
	Version string // of the API: "2" or "3"
}

// A ShimStart is what a shim is told when it is started.
type ShimStart struct {
	Namespace string
	ID        string
	Address   string // the public door, verbatim in every shim's arguments
	Events    string // where it sends its events
	Publisher string // executable for shims that send events by running it
	Sockets   string // directory for its socket; empty leaves it to the shim
	Options   *typed.Value
}

// A ShimAddress is where a shim listens, as it said when it was started.
type ShimAddress struct {
	Version  int    `json:"version"`  // of the task API: 2 or 3
	Address  string `json:"address"`  // "unix:///run/…"
	Protocol string `json:"protocol"` // "ttrpc"
}

// A ShimProtocol is how shims are spoken to.
type ShimProtocol interface {
	// Params returns what a starting shim reads on its standard input. The
	// legacy form is for shims from before there were parameters.
	Params(s ShimStart, legacy bool) ([]byte, error)

	// Started reads what a starting shim wrote: [errdefs.ErrInvalidArgument]
	// if it is not an address.
	Started(output []byte) (ShimAddress, error)

	// Deleted reads what a shim's delete command wrote.
	Deleted(output []byte) (Exit, error)

	// Connect returns when the shim has accepted the connection. A shim that
	// is not there is [errdefs.ErrNotFound]; one that does not accept is
	// [errdefs.ErrUnavailable]. ctx is for the connecting only.
	Connect(ctx context.Context, namespace string, a ShimAddress) (Shim, error)
}
