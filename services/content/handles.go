package content

import (
	"context"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/namespace"
)

// FileStores are stores on this machine that hand out their bytes as files.
type FileStores interface {
	Stores

	// Files returns what In returns, as files.
	Files(scope namespace.Scope) Files
}

// Files are the blobs and ingests of one namespace for a caller that reads and
// writes them itself. The promises of [Store] hold, whatever the caller does
// with its files: the worst that can become of them is its own ingest wasted.
type Files interface {
	// OpenFile returns the file of a blob, for reading only and at its first
	// byte: [errdefs.ErrNotFound] as for Info. The file has the bytes of the
	// blob for as long as it is open, and is the caller's to close.
	OpenFile(ctx context.Context, d digest.Digest) (*os.File, error)

	// OpenIngest returns the file of an ingest, for reading only, and how far it
	// is: [errdefs.ErrNotFound] as for Status. Somebody may be writing it. What is
	// below the offset is there, and may be something else until a commit says
	// what it is; who reads it meanwhile believes nothing. The file is the
	// caller's to close.
	OpenIngest(ctx context.Context, ref string) (*os.File, Status, error)

	// FileWriter is [Ingests.Writer] for a caller that writes the file. Where
	// the store could not be certain that nobody writes a file any more it is
	// [errdefs.ErrNotImplemented].
	FileWriter(ctx context.Context, o WriterOptions) (FileWriter, error)
}

// A FileWriter is a [Writer] whose bytes somebody else writes. What its file has
// is what the ingest has: Status, Digest and Commit look.
type FileWriter interface {
	// File returns the file of the ingest, for writing only and the caller's
	// to close. What is appended to the offset that Status tells becomes part of
	// the ingest; who writes elsewhere changes what is there already. Of a
	// writer that began at the end of a blob that another namespace has, it is a
	// copy, made by the first call; who has nothing to add does not ask.
	File(ctx context.Context) (*os.File, error)

	// Close is [Writer]'s: it keeps what the file has.
	Close() error

	// Status is [Writer]'s.
	Status(ctx context.Context) (Status, error)

	// Borrows says that there is no file, and that Commit needs none.
	Borrows() bool

	// Digest is that of the bytes so far, in the algorithm of the expected
	// digest; after Commit of what was committed. A file that has holes, which
	// nobody wrote, is [errdefs.ErrFailedPrecondition].
	Digest(ctx context.Context) (digest.Digest, error)

	// Truncate is [Writer]'s. It is for a caller that has stopped writing.
	Truncate(ctx context.Context, size int64) error

	// Commit is [Writer]'s. As long as the file is open for writing anywhere,
	// or mapped, or on its way to somebody, it is
	// [errdefs.ErrFailedPrecondition], as it is for a file that has holes; both
	// keep the ingest.
	Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error
}
