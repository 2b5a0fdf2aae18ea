package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/label"
)

// copySize is how many bytes are copied at a time.
const copySize = 1 << 20

// PutOptions say what is put, as far as it is known.
type PutOptions struct {
	// Digest is what the bytes hash to. Where it is given, a blob that is
	// there already is not sent again, and what a Put that was cut off has
	// sent need not be sent again by the next.
	Digest digest.Digest

	// Size is how many bytes there are, 0 if that is unknown.
	Size int64

	// Ref names the ingest. An empty one is made of Digest, or is one that
	// nobody else has.
	Ref string

	// Labels are added to those that the blob has.
	Labels map[string]string

	// Lease is what the blob becomes a resource of; empty is none. What no
	// lease has, no label roots and nothing refers to is garbage.
	Lease string

	// Progress, if it is not nil, is told how far it is.
	Progress func(Progress)
}

// A PutResult is what became of a Put.
type PutResult struct {
	Digest digest.Digest // empty if it failed before that was known
	Size   int64         // bytes

	// Existed says that the namespace had the blob already.
	Existed bool

	// Resumed is how many bytes were there before: of an earlier Put, or of
	// the same blob in another namespace.
	Resumed int64

	// Kept is how many bytes an ingest holds, where Put failed, for the next
	// Put with the same Ref or Digest to go on from.
	Kept int64
}

// Put makes the bytes of r a blob. It reads r from the first byte on, and as far
// as it has to: a blob that is there is no error, and is not read at all if its
// Digest is given. It waits for a daemon that restarts and goes on where that
// stands, and for another writer of the same ref for as long as ctx lives.
//
// Bytes that are not what o says are [errdefs.ErrFailedPrecondition], and
// nothing of them is kept; if there are fewer than o says, that is
// [io.ErrUnexpectedEOF]. A node without room is [errdefs.ErrResourceExhausted],
// a daemon that stays away [errdefs.ErrUnavailable], an ingest that somebody
// aborts meanwhile [errdefs.ErrNotFound], and what r says is returned as it is;
// then PutResult.Kept says what another Put can go on from, for a day.
func (n *Namespace) Put(ctx context.Context, r io.Reader, o PutOptions) (PutResult, error) {
	return n.put(ctx, o, func(i *ingest) (digest.Digest, error) { return i.readFrom(r, o) })
}

// PutFile is Put of a file. It reads it for its Digest and Size, unless the
// digest is given, so that a PutFile that was cut off is gone on with by the
// next, of any file with the same bytes. A file that changes meanwhile is
// [errdefs.ErrFailedPrecondition]. One that can be read only once, as a pipe, is
// put as by Put.
func (n *Namespace) PutFile(ctx context.Context, name string, o PutOptions) (PutResult, error) {
	f, err := os.Open(name)
	if err != nil {
		return PutResult{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return PutResult{}, err
	case fi.IsDir():
		return PutResult{}, invalid("%s is a directory", name)
	case !fi.Mode().IsRegular():
		return n.Put(ctx, f, o)
	}
	if o.Size != 0 && o.Size != fi.Size() {
		return PutResult{}, fmt.Errorf("%s has %d bytes, not %d: %w", name, fi.Size(), o.Size, errdefs.ErrFailedPrecondition)
	}
	if o.Size = fi.Size(); o.Digest == "" {
		if o.Digest, err = hashFile(ctx, f, o.Size, o.Progress); err != nil {
			return PutResult{Size: o.Size}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return n.put(ctx, o, func(i *ingest) (digest.Digest, error) {
		return o.Digest, i.readFile(f, fi.Size(), o.Progress)
	})
}

// put opens an ingest, lets fill write what it lacks, and commits it as the
// digest that fill returns.
func (n *Namespace) put(ctx context.Context, o PutOptions, fill func(*ingest) (digest.Digest, error)) (PutResult, error) {
	if err := label.Check(o.Labels); err != nil {
		return PutResult{}, err
	}
	anonymous := o.Ref == "" && o.Digest == ""
	switch {
	case anonymous:
		o.Ref = "put-" + rand.Text()
	case o.Ref == "":
		o.Ref = "put-" + o.Digest.String()
	}
	blobs := n.c.Content.In(n.scope(o.Lease))
	result := PutResult{Digest: o.Digest, Size: o.Size}
	i := &ingest{ctx: ctx, ingests: blobs, o: content.WriterOptions{Ref: o.Ref, Total: o.Size, Expected: o.Digest}}
	i.waiting = func() { teller(o.Progress).tell(StageWait, i.offset, o.Size) }
	i.waiting() // where others bring the same bytes, the daemon answers when they have
	err := i.openAfterOthers()
	if err == nil {
		result.Resumed = i.offset
		if result.Digest, err = fill(i); err == nil {
			result.Size = i.offset
			teller(o.Progress).tell(StageCommit, i.offset, i.offset)
			err = i.commit(i.offset, result.Digest, o.Labels)
		}
	}
	switch {
	case err == nil:
		return result, nil
	case errdefs.IsAlreadyExists(err):
		result.Existed = !i.asked
		if err = i.close(); err == nil {
			err = n.existing(ctx, blobs, &result, o.Labels)
		}
		return result, err
	case errdefs.IsNotFound(err): // somebody aborted it
		return result, errors.Join(err, i.close())
	case anonymous || errdefs.IsFailedPrecondition(err):
		// Nobody can go on with it, or ought to.
		return result, errors.Join(err, i.close(), i.forget())
	}
	result.Kept = i.offset
	return result, errors.Join(err, i.close())
}

// existing completes a result with what is known of a blob that was there.
func (n *Namespace) existing(ctx context.Context, blobs content.Blobs, result *PutResult, labels map[string]string) error {
	return once(ctx, func(ctx context.Context) error {
		info, err := blobs.Info(ctx, result.Digest)
		if err != nil {
			return err
		}
		result.Size = info.Size
		return addLabels(ctx, blobs, result.Digest, labels)
	})
}

// addLabels adds to the labels of a blob.
func addLabels(ctx context.Context, blobs content.Blobs, d digest.Digest, labels map[string]string) error {
	if len(labels) == 0 {
		return nil
	}
	var fields []string
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err := blobs.Update(ctx, content.Info{Digest: d, Labels: labels}, fields...)
	return err
}

// hashFile returns the digest of the first size bytes of f.
func hashFile(ctx context.Context, f io.ReaderAt, size int64, t teller) (digest.Digest, error) {
	hash := content.NewHash(digest.Canonical)
	buf := make([]byte, min(size, copySize))
	for done := int64(0); done < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		t.tell(StageHash, done, size)
		n, err := readPart(f, buf, done, size)
		if err != nil {
			return "", err
		}
		hash.Write(buf[:n])
		done += int64(n)
	}
	return digest.NewDigest(digest.Canonical, hash), nil
}

// readPart reads what buf has room for, of a file that has size bytes.
func readPart(f io.ReaderAt, buf []byte, offset, size int64) (int, error) {
	buf = buf[:min(size-offset, int64(len(buf)))]
	n, err := f.ReadAt(buf, offset)
	switch {
	case n == len(buf):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("it ends after %d of %d bytes: it changed while it was read: %w", offset+int64(n), size, errdefs.ErrFailedPrecondition)
	}
	return n, err
}

// readFile writes what the ingest lacks of a file.
func (i *ingest) readFile(f io.ReaderAt, size int64, t teller) error {
	buf := make([]byte, min(size, copySize))
	for i.offset < size {
		t.tell(StageSend, i.offset, size)
		n, err := readPart(f, buf, i.offset, size)
		if err != nil {
			return err
		}
		// Where others have put the same bytes meanwhile, it goes on from there.
		if _, err := i.Write(buf[:n]); err != nil && !errors.Is(err, errMoved) {
			return err
		}
	}
	return nil
}

// readFrom writes what the ingest lacks of r, and returns the digest.
func (i *ingest) readFrom(r io.Reader, o PutOptions) (digest.Digest, error) {
	if o.Digest != "" && i.whole() {
		return o.Digest, nil
	}
	hash := content.NewHash(digest.Canonical)
	if o.Digest == "" {
		r = io.TeeReader(r, hash)
	}
	if n, err := io.CopyN(io.Discard, r, i.offset); errors.Is(err, io.EOF) {
		return o.Digest, fmt.Errorf("ref %q has %d bytes already, and there are %d: %w", i.o.Ref, i.offset, n, errdefs.ErrFailedPrecondition)
	} else if err != nil {
		return o.Digest, err
	}
	buf := make([]byte, copySize)
	for {
		teller(o.Progress).tell(StageSend, i.offset, o.Size)
		n, readErr := io.ReadFull(r, buf)
		if _, err := i.Write(buf[:n]); err != nil {
			return o.Digest, err
		}
		switch {
		case o.Size > 0 && i.offset > o.Size:
			return o.Digest, fmt.Errorf("there are more than %d bytes: %w", o.Size, errdefs.ErrFailedPrecondition)
		case readErr == nil:
			continue
		case !errors.Is(readErr, io.EOF) && !errors.Is(readErr, io.ErrUnexpectedEOF):
			return o.Digest, readErr
		case i.offset < o.Size:
			return o.Digest, fmt.Errorf("there are %d bytes, not %d: %w", i.offset, o.Size, io.ErrUnexpectedEOF)
		case o.Digest == "":
			return digest.NewDigest(digest.Canonical, hash), nil
		}
		return o.Digest, nil
	}
}
