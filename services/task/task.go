// Package task is the contract of tasks: containers that run. A task has the
// id of its container; its first process has an empty exec id.
package task

import (
	"context"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/typed"
)

// A Status is what a process is doing.
type Status string

// The statuses of a process.
const (
	Unknown Status = "unknown" // its shim does not answer
	Created Status = "created"
	Running Status = "running"
	Stopped Status = "stopped"
	Paused  Status = "paused"
	Pausing Status = "pausing"
)

// IO is where a process's streams go: paths of FIFOs or URIs. An empty one is
// /dev/null.
type IO struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// An Exit is how a process ended.
type Exit struct {
	Pid    uint32
	Status uint32    // exit code, or 128 + signal
	At     time.Time // when it was seen
}

// A Process is one process of a task as it is now.
type Process struct {
	ContainerID string
	ExecID      string // empty for the first process
	Pid         uint32
	Status      Status
	IO          IO
	Exit        Exit // of a stopped process
}

// Services gives out a Service for each scope.
type Services interface {
	// In returns the tasks as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Service
}

// A Service is the tasks of one namespace.
//
// Promises that hold for every method:
//   - A missing container, task or exec is [errdefs.ErrNotFound].
//   - A task lives on when the service ends; the same call to the next one
//     finds it.
//   - Methods may be called from any goroutine.
type Service interface {
	Tasks
	Processes
	Controls
}

// Tasks come and go.
type Tasks interface {
	// Create makes a task that has not started and returns the pid of its
	// first process: [errdefs.ErrAlreadyExists] if the container has one, and
	// [errdefs.ErrInvalidArgument] if the runtime cannot be found or refuses.
	Create(ctx context.Context, r CreateRequest) (pid uint32, err error)

	// Delete removes a stopped task and all that it had on the node:
	// [errdefs.ErrFailedPrecondition] if it runs.
	Delete(ctx context.Context, id string) (Exit, error)

	// Get returns a process. A shim that does not answer within two seconds
	// makes its status [Unknown].
	Get(ctx context.Context, id, exec string) (Process, error)

	// List returns the first process of every task, in byte order of the ids.
	List(ctx context.Context) ([]Process, error)
}

// Processes are a task's first process and those added by Exec.
type Processes interface {
	// Exec adds a process that has not started:
	// [errdefs.ErrAlreadyExists] if the exec id is taken,
	// [errdefs.ErrInvalidArgument] if it is not an identifier, and
	// [errdefs.ErrFailedPrecondition] if the task does not run.
	Exec(ctx context.Context, r ExecRequest) error

	// Start runs a created process and returns its pid. A program that cannot
	// be run is an error, and the process is then stopped.
	Start(ctx context.Context, id, exec string) (pid uint32, err error)

	// Wait returns when the process has ended, at once if it has already, for
	// as long as it has not been deleted.
	Wait(ctx context.Context, id, exec string) (Exit, error)

	// Kill sends a signal, with all to every process of the task. A process
	// that has ended is [errdefs.ErrNotFound].
	Kill(ctx context.Context, id, exec string, signal uint32, all bool) error

	// DeleteProcess removes a stopped process that Exec added:
	// [errdefs.ErrFailedPrecondition] if it runs.
	DeleteProcess(ctx context.Context, id, exec string) (Exit, error)

	// ResizePty sets the size of the process's terminal, in characters.
	ResizePty(ctx context.Context, id, exec string, width, height uint32) error

	// CloseIO closes the process's standard input.
	CloseIO(ctx context.Context, id, exec string) error
}

// Controls act on a task as a whole.
type Controls interface {
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error

	// Pids returns every process in the task, with what the shim says of each.
	Pids(ctx context.Context, id string) ([]ProcessInfo, error)

	// Update changes resources.
	Update(ctx context.Context, id string, resources typed.Value, annotations map[string]string) error

	// Checkpoint writes the task's state to content, or to a path named in
	// options, and returns what it wrote to content.
	Checkpoint(ctx context.Context, id string, options *typed.Value) ([]ocispec.Descriptor, error)

	// Metrics returns what the shims of the tasks that match one of the
	// filters (fields "id" and "namespace") say; shims that do not answer are
	// left out.
	Metrics(ctx context.Context, filters ...string) ([]Metric, error)
}

// A CreateRequest says what to create.
type CreateRequest struct {
	ContainerID string
	Rootfs      []mount.Mount // mounted by the shim, in its bundle
	IO          IO
	Checkpoint  *ocispec.Descriptor // restore from it
	Options     *typed.Value        // containerd.runc.v1.Options, or the runtime's own
	RuntimePath string              // absolute path of a shim, instead of the container's runtime
}

// An ExecRequest says what to run in a task.
type ExecRequest struct {
	ContainerID string
	ExecID      string
	Spec        typed.Value // OCI process, JSON
	IO          IO
}

// A ProcessInfo is a pid and what a shim says of it.
type ProcessInfo struct {
	Pid  uint32
	Info *typed.Value
}

// A Metric is what a shim measured of a task.
type Metric struct {
	ID   string
	Time time.Time
	Data *typed.Value
}

// MetricField reads what filters of Metrics may name: "id" and "namespace".
func MetricField(namespace, id string) func(path []string) (value string, present bool) {
	return func(path []string) (string, bool) {
		switch {
		case len(path) != 1:
			return "", false
		case path[0] == "id":
			return id, true
		case path[0] == "namespace":
			return namespace, true
		}
		return "", false
	}
}
