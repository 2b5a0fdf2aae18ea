package snapshot

import (
	"context"
	"iter"

	"github.com/gantryd/gantry/services/namespace"
)

// A Measured snapshot is what it occupies, and why it is kept, as far as its
// store knows.
type Measured struct {
	Info
	Usage
	Children int      // snapshots that stand on it
	Leases   []string // ids of leases that it belongs to, sorted; one may have ended

	// Unknown says why Usage is not known, if it is not.
	Unknown string
}

// A Meter measures many snapshots in one call.
type Meter interface {
	// Usage yields every snapshot of the scope's namespace in a snapshotter, in
	// order of their names. One that is removed meanwhile is left out. Where
	// there is no such snapshotter, and where the scope does not pass
	// [namespace.Scope.Check], it is [errdefs.ErrInvalidArgument] or the
	// scope's error. An error is yielded last.
	Usage(ctx context.Context, scope namespace.Scope, snapshotter string) iter.Seq2[Measured, error]
}
