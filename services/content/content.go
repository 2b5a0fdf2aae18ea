// Package content is the contract of the content store: immutable blobs named
// by the digest of their bytes, and ingests, the blobs that are still being
// written.
//
// The semantics are those of containerd's Content service, which clients
// depend on in detail; where an outcome looks odd, that is why.
package content

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/namespace"
)

// An Info is what a namespace knows of a blob.
type Info struct {
	Digest    digest.Digest
	Size      int64 // bytes
	CreatedAt time.Time
	UpdatedAt time.Time
	Labels    map[string]string
}

// A Status is how far an ingest is.
type Status struct {
	Ref       string
	Offset    int64         // bytes written so far
	Total     int64         // bytes expected in all, 0 if unknown
	Expected  digest.Digest // what the bytes are expected to hash to, or empty
	StartedAt time.Time
	UpdatedAt time.Time
}

// Stores gives out a Store for each scope.
type Stores interface {
	// In returns the store as seen from scope, which must pass
	// [namespace.Scope.Check].
	In(scope namespace.Scope) Store
}

// A Store is the content of one namespace.
//
// Promises that hold for every method:
//   - A blob is wholly present or wholly absent; no caller sees half of one.
//   - What a method acknowledged survives the end of the process and of power.
//   - A namespace sees only the blobs it has a record of, even where another
//     namespace has the same bytes.
//   - A digest that does not parse is [errdefs.ErrInvalidArgument].
//   - A scope whose lease does not exist is [errdefs.ErrNotFound] from every
//     method that creates something; what is created, and what turns out to
//     exist already, becomes a resource of the lease.
//   - [errdefs.ErrUnavailable] says that a ref is held and nothing else:
//     clients try again for as long as they get it.
//   - A store that has not the room to go on is [errdefs.ErrResourceExhausted],
//     and deletes all the same.
//   - Methods may be called from any goroutine.
type Store interface {
	Blobs
	Ingests
}

// Blobs are the whole blobs of a namespace.
type Blobs interface {
	// Info reports what is known of a blob: [errdefs.ErrNotFound] if this
	// namespace has no record of it.
	Info(ctx context.Context, d digest.Digest) (Info, error)

	// Update replaces the labels, or with fields "labels.<key>" only those.
	// Any field but "labels" and "labels.<key>" is
	// [errdefs.ErrInvalidArgument]; a missing blob is [errdefs.ErrNotFound].
	// A label set to "" is deleted.
	Update(ctx context.Context, info Info, fields ...string) (Info, error)

	// List yields every blob that matches one of the filters, or all without
	// filters, in digest order. A filter that does not parse is
	// [errdefs.ErrInvalidArgument]. Blobs committed or deleted meanwhile may
	// or may not appear. An error is yielded last.
	List(ctx context.Context, filters ...string) iter.Seq2[Info, error]

	// Delete removes the namespace's record, and takes the blob from the
	// scope's lease: [errdefs.ErrNotFound] if there is no record. Bytes that
	// no namespace has a record of are removed later.
	Delete(ctx context.Context, d digest.Digest) error

	// Open returns the blob's bytes: [errdefs.ErrNotFound] as for Info. The
	// caller closes the reader; ctx lives at least as long.
	Open(ctx context.Context, d digest.Digest) (Reader, error)
}

// A Reader reads a blob at any offset, from several goroutines at once. Once
// the blob is deleted it goes on, or is [errdefs.ErrNotFound] where it has to
// ask for each read; it never returns other bytes.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64 // bytes
}

// Ingests are the blobs being written. Each has a ref, chosen by its writer,
// which at most one Writer holds at a time.
//
// What was written survives the end of the process once it is more than a MiB,
// and also that of power once the Writer was closed; of what is less, and was not
// closed, there is no ingest afterwards. One that nobody writes is forgotten after
// a day, or when the leases that it belongs to are gone.
type Ingests interface {
	// Writer starts an ingest, or resumes it where it stands; one whose total
	// or expected digest was another starts over. It is
	// [errdefs.ErrUnavailable] if another writer holds the ref,
	// [errdefs.ErrAlreadyExists] if the namespace has the expected blob (then
	// no ingest is left behind), and [errdefs.ErrInvalidArgument] without a
	// ref. The caller closes it; ctx lives at least as long.
	//
	// An expected blob that another namespace has, of the given total, need
	// not be written again where the store's [Sharing] lets the namespace have
	// it: the writer begins at its end, and Commit makes it a blob of this
	// namespace too. Such an ingest has no Status until something else is done
	// to it. Elsewhere the writer begins at 0, and asks for every byte.
	//
	// Of the writers that expect the same digest, under other refs or in
	// namespaces that may have each other's blobs, one brings the bytes. The
	// others wait in Writer, holding their refs, and then the blob is there.
	// One of those who wait goes on as the next when the one before ends
	// without a commit, brings nothing for 5 seconds, or less than 64 KiB a
	// second; nobody waits longer than 10 seconds for other namespaces. See
	// [Fetches].
	Writer(ctx context.Context, o WriterOptions) (Writer, error)

	// Status is [errdefs.ErrNotFound] if there is no such ingest.
	Status(ctx context.Context, ref string) (Status, error)

	// ListStatuses returns the ingests that match one of the filters (field
	// "ref"), in order of their refs. A filter that does not parse is
	// [errdefs.ErrInvalidArgument].
	ListStatuses(ctx context.Context, filters ...string) ([]Status, error)

	// Abort forgets an ingest and its bytes: [errdefs.ErrNotFound] if there is
	// no such ingest. A writer that is open keeps the ref until it is closed,
	// and can do nothing else.
	Abort(ctx context.Context, ref string) error
}

// WriterOptions say what is going to be written. Total and Expected hold for
// Commit where it does not say otherwise.
type WriterOptions struct {
	Ref      string
	Total    int64         // bytes, 0 if unknown
	Expected digest.Digest // empty if unknown
}

// A Writer appends to an ingest and ends by committing it or leaving it to be
// resumed. It is used by one goroutine at a time. One that is over is
// [errdefs.ErrFailedPrecondition] from every method that can fail but Close;
// one whose ingest was aborted is [errdefs.ErrNotFound].
type Writer interface {
	// Write appends.
	io.Writer

	// Close releases the ref and keeps the bytes, to be resumed. After Commit
	// it does nothing.
	io.Closer

	// Status reports the ingest as it is now.
	Status(ctx context.Context) (Status, error)

	// Digest is that of the bytes written so far, in the algorithm of the
	// expected digest. Of a writer that was closed it is that, or empty if
	// nobody knew when it was.
	Digest() digest.Digest

	// Truncate to size 0 drops what was written. The size that the ingest has
	// changes nothing, one past the end or below 0 is [errdefs.ErrOutOfRange],
	// and one in between is [errdefs.ErrNotImplemented].
	Truncate(ctx context.Context, size int64) error

	// Commit makes the ingest a blob of the namespace, durably. A size other
	// than 0 that is not the ingest's, and an expected digest that is not its
	// bytes', are [errdefs.ErrFailedPrecondition], and a bad label is
	// [errdefs.ErrInvalidArgument]; both keep the ingest. A blob that the
	// namespace has already is [errdefs.ErrAlreadyExists] and ends the ingest,
	// whatever was written if it is the expected one. The writer is over and
	// the ref released, whatever Commit returns.
	Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error
}
