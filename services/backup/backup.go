// Package backup is the contract of a daemon whose records can be copied, and
// put back, while it runs.
package backup

import (
	"context"
	"io"
)

// A Change is what was different from a backup when it had been restored.
type Change struct {
	What  string // for people, such as "blobs that the backup did not know"
	Count int64
}

// A Report is what a restore came to.
type Report struct {
	Records int64
	Changes []Change
}

// A Keeper is a daemon that keeps records. A backup is of records only: the
// bytes that they are about are their own.
type Keeper interface {
	// Backup writes the records as they are at one moment. It holds up no
	// change meanwhile. A backup that was not written to its end is known as
	// one that is not whole.
	Backup(ctx context.Context, w io.Writer) error

	// Restore puts the records of a backup in the place of those that are
	// there, all of them or none, and reconciles them with what else the
	// daemon keeps. What is no whole backup is [errdefs.ErrDataLoss], one of
	// another daemon or of a newer version of it is
	// [errdefs.ErrFailedPrecondition], and neither changes anything. Calls to
	// the daemon wait meanwhile.
	Restore(ctx context.Context, r io.Reader) (Report, error)
}
