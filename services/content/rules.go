package content

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/label"
)

// hashes are the algorithms that blobs can be named by.
var hashes = map[digest.Algorithm]func() hash.Hash{
	digest.SHA256: sha256.New,
	digest.SHA384: sha512.New384,
	digest.SHA512: sha512.New,
}

// Algorithms are those that a digest can have.
func Algorithms() []digest.Algorithm {
	return []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}
}

// NewHash returns the hash of an algorithm that a checked digest has. Its state
// can be saved by [encoding.BinaryMarshaler].
func NewHash(a digest.Algorithm) hash.Hash { return hashes[a]() }

// CheckDigest is [errdefs.ErrInvalidArgument] unless d is an algorithm of
// [Algorithms] and the hexadecimal of its length.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.140q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	if hashes[d.Algorithm()] == nil {
		return fmt.Errorf("digest %.140q: unsupported algorithm: %w", string(d), errdefs.ErrInvalidArgument)
	}
	return nil
}

// refMax is how long a ref is at most, in bytes.
const refMax = 4096

// Check is [errdefs.ErrInvalidArgument] if the ref is empty or longer than 4096
// bytes, the total below 0, or the expected digest malformed.
func (o WriterOptions) Check() error {
	switch {
	case o.Ref == "":
		return fmt.Errorf("ref must not be empty: %w", errdefs.ErrInvalidArgument)
	case len(o.Ref) > refMax:
		return fmt.Errorf("ref of %d bytes is longer than %d: %w", len(o.Ref), refMax, errdefs.ErrInvalidArgument)
	case o.Total < 0:
		return fmt.Errorf("total of %d bytes: %w", o.Total, errdefs.ErrInvalidArgument)
	case o.Expected != "":
		return CheckDigest(o.Expected)
	}
	return nil
}

// A Claim is what a Commit says of the bytes, together with what was said when
// the writer was opened.
type Claim struct {
	Size     int64         // 0 if nothing was said
	Expected digest.Digest // empty if nothing was said
}

// NewClaim is [errdefs.ErrInvalidArgument] for a bad size, digest or label.
func NewClaim(o WriterOptions, size int64, expected digest.Digest, labels map[string]string) (Claim, error) {
	c := Claim{Size: size, Expected: expected}
	if c.Size == 0 {
		c.Size = o.Total
	}
	if c.Expected == "" {
		c.Expected = o.Expected
	}
	if err := (WriterOptions{Ref: o.Ref, Total: c.Size, Expected: c.Expected}).Check(); err != nil {
		return c, err
	}
	return c, label.Check(labels)
}

// Check is [errdefs.ErrFailedPrecondition] unless the claim is true of bytes of
// that size and digest.
func (c Claim) Check(ref string, size int64, d digest.Digest) error {
	if c.Size != 0 && c.Size != size {
		return fmt.Errorf("ref %q has %d bytes, not %d: %w", ref, size, c.Size, errdefs.ErrFailedPrecondition)
	}
	if c.Expected != "" && c.Expected != d {
		return fmt.Errorf("ref %q is %s, not %s: %w", ref, d, c.Expected, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// CheckTruncate says what is wrong with a truncation to size, if anything is, of
// an ingest that has offset bytes: the rule of [Writer].
func CheckTruncate(size, offset int64) error {
	switch {
	case size < 0 || size > offset:
		return fmt.Errorf("truncate to %d of %d bytes: %w", size, offset, errdefs.ErrOutOfRange)
	case size != 0 && size != offset:
		return fmt.Errorf("truncate to %d of %d bytes: %w", size, offset, errdefs.ErrNotImplemented)
	}
	return nil
}

// Field reads what filters of a list may name: "digest", "size" and
// "labels.<key>".
func (i Info) Field(path []string) (value string, present bool) {
	switch {
	case len(path) == 1 && path[0] == "digest":
		return i.Digest.String(), true
	case len(path) == 1 && path[0] == "size":
		return strconv.FormatInt(i.Size, 10), true
	case len(path) > 1 && path[0] == "labels":
		return filter.Labels(i.Labels, path[1:])
	}
	return "", false
}

// Field reads what filters of a list may name: "ref".
func (s Status) Field(path []string) (value string, present bool) {
	if len(path) == 1 && path[0] == "ref" {
		return s.Ref, true
	}
	return "", false
}
