// Package contenttest has the promises of package content as tests, and a store
// in memory that keeps them.
package contenttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
)

// A Subject is what is tested: stores, and what belongs to leases there.
type Subject struct {
	Stores  content.Stores
	Members lease.Members
}

// Run tests what open returns. It calls open once per promise, with the leases
// that exist, and expects no content each time.
func Run(t *testing.T, open func(t *testing.T, leases lease.Registry) Subject) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			s := &subject{leases: &leasetest.Memory{}}
			s.Subject = open(t, s.leases)
			p.check(t, s)
		})
	}
}

// A subject comes with the leases that it knows.
type subject struct {
	Subject
	leases *leasetest.Memory
}

var promises = []struct {
	name  string
	check func(*testing.T, *subject)
}{
	{"commit then open returns the same bytes", commitThenOpen},
	{"a blob of no bytes is one", emptyBlob},
	{"a blob is read at any offset, by many at once", readAt},
	{"digests of every algorithm name blobs", algorithms},
	{"commit by a digest of another algorithm checks it", otherAlgorithm},
	{"a missing blob is not found by every method", missing},
	{"a malformed digest is refused by every method", malformedDigest},
	{"a reader of a deleted blob goes on or says so", readerSurvivesDelete},
	{"commit of another size keeps the ingest", wrongSize},
	{"commit of another digest keeps the ingest", wrongDigest},
	{"what the writer was told holds for commit", claimFromWriter},
	{"commit of a blob that is there ends the ingest", commitExists},
	{"commit of an expected blob that is there asks for no bytes", commitExpectedExists},
	{"a writer of an expected blob that is there leaves no ingest", writerExists},
	{"one writer holds a ref", refHeld},
	{"a ref is any text", refIsText},
	{"a failed commit releases the ref", failedCommitReleases},
	{"a closed ingest is resumed where it stands", resume},
	{"an ingest of another total or digest starts over", startOver},
	{"truncate drops everything or nothing", truncate},
	{"abort forgets an ingest", abort},
	{"abort ends a writer that is open", abortOpen},
	{"a writer that is over stays so", writerOver},
	{"a writer's status is the ingest's", writerStatus},
	{"statuses are in order of refs and take filters", listStatuses},
	{"bad options are refused and leave nothing", badOptions},
	{"labels of a commit are kept, but for empty ones", commitLabels},
	{"a bad label is refused and keeps the ingest", badLabels},
	{"update replaces labels, or the named ones", updateLabels},
	{"update of another field is refused and changes nothing", updateUnknown},
	{"list is in order of digests and of one namespace", list},
	{"filters match digest, size and labels", filters},
	{"list ends where its caller does", listBreak},
	{"what a caller does to a result changes nothing", results},
	{"a deleted blob can be written again", deleteThenWrite},
	{"namespaces do not see each other's blobs", namespaces},
	{"the bytes of another namespace need not be written again", shared},
	{"bytes of another namespace that are written to are a copy", sharedWritten},
	{"bytes of another namespace that are truncated are left alone", sharedTruncated},
	{"bytes that another namespace deletes meanwhile are not lost", sharedDeleted},
	{"another total than the shared blob's is a blob of its own", sharedOtherTotal},
	{"a lease that does not exist is not found and nothing is made", leaseMissing},
	{"what is made becomes a resource of the lease", leaseMembers},
	{"what is there already becomes a resource of the lease", leaseExisting},
	{"many writers of one blob at once make one", race},
	{"writers of many blobs at once make all", manyAtOnce},
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

// body returns size bytes that look random and depend on seed.
func body(seed uint64, size int) []byte {
	b := make([]byte, size)
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	c.Read(b)
	return b
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

func wantSame(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func writer(t *testing.T, s content.Ingests, o content.WriterOptions) content.Writer {
	t.Helper()
	w, err := s.Writer(t.Context(), o)
	if err != nil {
		t.Fatalf("Writer(%+v): %v", o, err)
	}
	return w
}

func write(t *testing.T, w content.Writer, b []byte) {
	t.Helper()
	if n, err := w.Write(b); n != len(b) || err != nil {
		t.Fatalf("Write of %d bytes: %d, %v", len(b), n, err)
	}
}

func closeWriter(t *testing.T, w content.Writer) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// put makes b a blob, without a word of what it is going to be.
func put(t *testing.T, s content.Store, b []byte, labels map[string]string) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	w := writer(t, s, content.WriterOptions{Ref: "put-" + d.String()})
	write(t, w, b)
	if err := w.Commit(t.Context(), int64(len(b)), d, labels); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	closeWriter(t, w)
	return d
}

func info(t *testing.T, s content.Blobs, d digest.Digest) content.Info {
	t.Helper()
	i, err := s.Info(t.Context(), d)
	if err != nil {
		t.Fatalf("Info(%s): %v", d, err)
	}
	return i
}

func wantBytes(t *testing.T, s content.Blobs, d digest.Digest, want []byte) {
	t.Helper()
	got, err := content.ReadAll(t.Context(), s, d, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("blob %s: %d bytes, %v; want %d", d, len(got), err, len(want))
	}
}

func wantNoBlob(t *testing.T, s content.Blobs, d digest.Digest) {
	t.Helper()
	_, err := s.Info(t.Context(), d)
	wantKind(t, "Info", err, errdefs.ErrNotFound)
}

func wantNoIngest(t *testing.T, s content.Ingests, ref string) {
	t.Helper()
	_, err := s.Status(t.Context(), ref)
	wantKind(t, "Status of "+ref, err, errdefs.ErrNotFound)
}

func wantOffset(t *testing.T, w content.Writer, want int64) {
	t.Helper()
	st, err := w.Status(t.Context())
	if err != nil || st.Offset != want {
		t.Errorf("Status: offset %d, %v; want %d", st.Offset, err, want)
	}
}

func commitThenOpen(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	before := time.Now()
	b := body(1, 3<<20+17)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	for part := range slices.Chunk(b, 1<<20) {
		write(t, w, part)
	}
	if err := w.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	after := time.Now()
	d := digest.FromBytes(b)
	if got := w.Digest(); got != d {
		t.Errorf("Digest after Commit: %s, want %s", got, d)
	}
	closeWriter(t, w)
	wantBytes(t, s, d, b)
	wantNoIngest(t, s, "r")
	i := info(t, s, d)
	if i.Digest != d || i.Size != int64(len(b)) || len(i.Labels) != 0 {
		t.Errorf("Info: %+v", i)
	}
	if i.CreatedAt.Before(before) || i.CreatedAt.After(after) || !i.UpdatedAt.Equal(i.CreatedAt) {
		t.Errorf("created %v, updated %v; want one time from %v to %v", i.CreatedAt, i.UpdatedAt, before, after)
	}
}

func emptyBlob(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	d := put(t, s, nil, nil)
	if d != "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("digest of nothing: %s", d)
	}
	wantBytes(t, s, d, nil)
	w := writer(t, sub.Stores.In(two), content.WriterOptions{Ref: "r", Expected: d})
	if err := w.Commit(t.Context(), 0, d, nil); err != nil {
		t.Errorf("Commit in another namespace: %v", err)
	}
	wantBytes(t, sub.Stores.In(two), d, nil)
}

func readAt(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(2, 2<<20+5)
	d := put(t, s, b, nil)
	r, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	size := int64(len(b))
	if r.Size() != size {
		t.Errorf("Size: %d, want %d", r.Size(), size)
	}
	var wg sync.WaitGroup
	for _, c := range []struct{ off, n int64 }{
		{0, 1}, {0, size}, {1, size - 1}, {size - 1, 1}, {1 << 20, 1 << 20}, {1<<20 - 1, 2}, {12345, 100}, {size, 0}, {7, 0},
	} {
		wg.Go(func() {
			p := make([]byte, c.n)
			n, err := r.ReadAt(p, c.off)
			if err != nil && !errors.Is(err, io.EOF) || int64(n) != c.n || !bytes.Equal(p, b[c.off:c.off+c.n]) {
				t.Errorf("ReadAt(%d bytes, %d): %d, %v", c.n, c.off, n, err)
			}
		})
	}
	wg.Wait()
	for _, off := range []int64{size - 3, size, size + 1} {
		n, err := r.ReadAt(make([]byte, 10), off)
		if want := int(max(size-off, 0)); n != want || !errors.Is(err, io.EOF) {
			t.Errorf("ReadAt(10 bytes, %d) of %d: %d, %v; want %d, EOF", off, size, n, err, want)
		}
	}
	if all, err := io.ReadAll(io.NewSectionReader(r, 0, size)); err != nil || !bytes.Equal(all, b) {
		t.Errorf("ReadAll: %d bytes, %v", len(all), err)
	}
}

func algorithms(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(3, 1000)
	for _, a := range content.Algorithms() {
		d := a.FromBytes(b)
		w := writer(t, s, content.WriterOptions{Ref: a.String(), Expected: d})
		write(t, w, b)
		if got := w.Digest(); got != d {
			t.Errorf("Digest: %s, want %s", got, d)
		}
		if err := w.Commit(t.Context(), 0, "", nil); err != nil {
			t.Errorf("Commit of %s: %v", a, err)
		}
		wantBytes(t, s, d, b)
	}
}

func otherAlgorithm(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(4, 1000)
	d := digest.SHA512.FromBytes(b)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, b)
	wantKind(t, "Commit of other bytes", w.Commit(t.Context(), 0, digest.SHA512.FromString("x"), nil), errdefs.ErrFailedPrecondition)
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	wantOffset(t, w, 1000)
	if err := w.Commit(t.Context(), 1000, d, nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantBytes(t, s, d, b)
	wantNoBlob(t, s, digest.FromBytes(b))
}

func missing(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	d := digest.FromString("missing")
	_, err := s.Info(t.Context(), d)
	wantKind(t, "Info", err, errdefs.ErrNotFound)
	_, err = s.Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"a": "b"}})
	wantKind(t, "Update", err, errdefs.ErrNotFound)
	_, err = s.Open(t.Context(), d)
	wantKind(t, "Open", err, errdefs.ErrNotFound)
	wantKind(t, "Delete", s.Delete(t.Context(), d), errdefs.ErrNotFound)
	wantNoIngest(t, s, "r")
	wantKind(t, "Abort", s.Abort(t.Context(), "r"), errdefs.ErrNotFound)
	for i, err := range s.List(t.Context()) {
		t.Errorf("List: %v, %v; want nothing", i, err)
	}
}

// malformed are digests of which none may ever become a path.
var malformed = []digest.Digest{
	"", "x", "sha256:", ":abc", "sha256", "sha256:abc", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
	digest.Digest("sha256:" + strings.Repeat("A", 64)),
	digest.Digest("sha256:" + strings.Repeat("g", 64)),
	digest.Digest("sha256:" + strings.Repeat("a", 63)),
	digest.Digest("sha256:" + strings.Repeat("a", 65)),
	digest.Digest("SHA256:" + strings.Repeat("a", 64)),
	digest.Digest("sha512:" + strings.Repeat("a", 64)),
	digest.Digest("../sha256:" + strings.Repeat("a", 64)),
	digest.Digest("sha256:../../" + strings.Repeat("a", 58)),
	digest.Digest("sha256:" + strings.Repeat("../", 21) + "a"),
	digest.Digest("sha256/x:" + strings.Repeat("a", 64)),
	digest.Digest("sha256:" + strings.Repeat("a", 64) + "\n"),
	digest.Digest("sha256:" + strings.Repeat("a", 63) + "\x00"),
}

func malformedDigest(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for _, d := range malformed {
		_, err := s.Info(t.Context(), d)
		wantKind(t, fmt.Sprintf("Info(%q)", d), err, errdefs.ErrInvalidArgument)
		_, err = s.Update(t.Context(), content.Info{Digest: d})
		wantKind(t, fmt.Sprintf("Update(%q)", d), err, errdefs.ErrInvalidArgument)
		_, err = s.Open(t.Context(), d)
		wantKind(t, fmt.Sprintf("Open(%q)", d), err, errdefs.ErrInvalidArgument)
		wantKind(t, fmt.Sprintf("Delete(%q)", d), s.Delete(t.Context(), d), errdefs.ErrInvalidArgument)
		if d == "" {
			continue // to a writer it says nothing
		}
		_, err = s.Writer(t.Context(), content.WriterOptions{Ref: "w", Expected: d})
		wantKind(t, fmt.Sprintf("Writer(%q)", d), err, errdefs.ErrInvalidArgument)
		w := writer(t, s, content.WriterOptions{Ref: "c"})
		wantKind(t, fmt.Sprintf("Commit(%q)", d), w.Commit(t.Context(), 0, d, nil), errdefs.ErrInvalidArgument)
	}
	wantNoIngest(t, s, "w")
}

func readerSurvivesDelete(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(5, 100_000)
	d := put(t, s, b, nil)
	r, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	p := make([]byte, len(b))
	if n, err := r.ReadAt(p, 0); n == len(b) && bytes.Equal(p, b) {
		return
	} else if n > 0 || !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("ReadAt after Delete: %d bytes, %v; want the bytes, or not found", n, err)
	}
}

func wrongSize(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(6, 500)
	for _, size := range []int64{499, 501, 1} {
		w := writer(t, s, content.WriterOptions{Ref: "r"})
		if size == 499 {
			write(t, w, b)
		}
		wantOffset(t, w, 500)
		wantKind(t, fmt.Sprintf("Commit of %d", size), w.Commit(t.Context(), size, "", nil), errdefs.ErrFailedPrecondition)
		closeWriter(t, w)
		wantNoBlob(t, s, digest.FromBytes(b))
	}
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	if err := w.Commit(t.Context(), 500, "", nil); err != nil {
		t.Errorf("Commit of 500: %v", err)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
}

func wrongDigest(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b, other := body(7, 500), digest.FromString("other")
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, b)
	wantKind(t, "Commit", w.Commit(t.Context(), 0, other, nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, s, other)
	wantNoBlob(t, s, digest.FromBytes(b))
	if st, err := s.Status(t.Context(), "r"); err != nil || st.Offset != 500 {
		t.Errorf("Status: %+v, %v; want the ingest kept", st, err)
	}
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	if err := w.Commit(t.Context(), 0, digest.FromBytes(b), nil); err != nil {
		t.Errorf("Commit of what is there: %v", err)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
}

func claimFromWriter(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(8, 500)
	d := digest.FromBytes(b)
	w := writer(t, s, content.WriterOptions{Ref: "total", Total: 501})
	write(t, w, b)
	wantKind(t, "Commit short of the total", w.Commit(t.Context(), 0, "", nil), errdefs.ErrFailedPrecondition)
	w = writer(t, s, content.WriterOptions{Ref: "digest", Expected: digest.FromString("other")})
	write(t, w, b)
	wantKind(t, "Commit of other bytes", w.Commit(t.Context(), 0, "", nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, s, d)
	w = writer(t, s, content.WriterOptions{Ref: "good", Total: 500, Expected: d})
	write(t, w, b)
	if err := w.Commit(t.Context(), 0, "", nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantBytes(t, s, d, b)
}

func commitExists(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(9, 500)
	d := put(t, s, b, map[string]string{"a": "1"})
	before := info(t, s, d)
	for _, expected := range []digest.Digest{d, ""} {
		w := writer(t, s, content.WriterOptions{Ref: "again"})
		write(t, w, b)
		wantKind(t, "Commit", w.Commit(t.Context(), 500, expected, map[string]string{"b": "2"}), errdefs.ErrAlreadyExists)
		closeWriter(t, w)
		wantNoIngest(t, s, "again")
	}
	wantSame(t, "Info", info(t, s, d), before)
	wantBytes(t, s, d, b)
}

func commitExpectedExists(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	w := writer(t, s, content.WriterOptions{Ref: "slow"})
	write(t, w, []byte("half of"))
	d := put(t, s, body(10, 500), nil)
	wantKind(t, "Commit", w.Commit(t.Context(), 500, d, nil), errdefs.ErrAlreadyExists)
	wantNoIngest(t, s, "slow")
	closeWriter(t, writer(t, s, content.WriterOptions{Ref: "slow"}))
}

func writerExists(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(11, 500)
	d := digest.FromBytes(b)
	w := writer(t, s, content.WriterOptions{Ref: "left", Expected: d})
	write(t, w, b[:100])
	closeWriter(t, w)
	put(t, s, b, nil)
	for _, ref := range []string{"left", "new"} {
		_, err := s.Writer(t.Context(), content.WriterOptions{Ref: ref, Expected: d})
		wantKind(t, "Writer", err, errdefs.ErrAlreadyExists)
		wantNoIngest(t, s, ref)
		closeWriter(t, writer(t, s, content.WriterOptions{Ref: ref}))
	}
	// The blob is what was asked for, whoever holds the ref.
	w = writer(t, s, content.WriterOptions{Ref: "held"})
	defer w.Close()
	_, err := s.Writer(t.Context(), content.WriterOptions{Ref: "held", Expected: d})
	wantKind(t, "Writer of a held ref", err, errdefs.ErrAlreadyExists)
	wantOffset(t, w, 0)
}

func refHeld(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, []byte("abc"))
	for range 3 {
		_, err := s.Writer(t.Context(), content.WriterOptions{Ref: "r"})
		wantKind(t, "second Writer", err, errdefs.ErrUnavailable)
	}
	closeWriter(t, writer(t, s, content.WriterOptions{Ref: "other"}))
	closeWriter(t, writer(t, sub.Stores.In(two), content.WriterOptions{Ref: "r"}))
	write(t, w, []byte("def"))
	closeWriter(t, w)
	for range 20 {
		w = writer(t, s, content.WriterOptions{Ref: "r"})
		wantOffset(t, w, 6)
		closeWriter(t, w)
	}
}

// texts are refs that a key, a path, a filter or a log line could stumble over.
var texts = []string{
	"a/b", "../..", ".", "..", "/etc/passwd", "a\x00b", "\x00", "\x01", "a\x01\x01b", "ß水", "a b", "a,b==\"c\"", "a\nb", "%s%n",
	"layer-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", strings.Repeat("x", 4096),
}

func refIsText(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for i, ref := range texts {
		w := writer(t, s, content.WriterOptions{Ref: ref})
		write(t, w, make([]byte, i))
		closeWriter(t, w)
	}
	for i, ref := range texts {
		if st, err := s.Status(t.Context(), ref); err != nil || st.Ref != ref || st.Offset != int64(i) {
			t.Errorf("Status(%q): %+v, %v", ref, st, err)
		}
	}
	all, err := s.ListStatuses(t.Context())
	if err != nil || len(all) != len(texts) {
		t.Errorf("ListStatuses: %d, %v; want %d", len(all), err, len(texts))
	}
	for i, ref := range texts {
		b := make([]byte, i)
		w := writer(t, s, content.WriterOptions{Ref: ref})
		if err := w.Commit(t.Context(), int64(i), "", nil); err != nil {
			t.Errorf("Commit of %q: %v", ref, err)
		}
		wantBytes(t, s, digest.FromBytes(b), b)
	}
}

func failedCommitReleases(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for i, bad := range []func(w content.Writer) error{
		func(w content.Writer) error { return w.Commit(t.Context(), 99, "", nil) },
		func(w content.Writer) error { return w.Commit(t.Context(), -1, "", nil) },
		func(w content.Writer) error { return w.Commit(t.Context(), 0, "junk", nil) },
		func(w content.Writer) error { return w.Commit(t.Context(), 0, digest.FromString("x"), nil) },
		func(w content.Writer) error { return w.Commit(t.Context(), 0, "", map[string]string{"": "x"}) },
	} {
		w := writer(t, s, content.WriterOptions{Ref: "r"})
		if i == 0 {
			write(t, w, []byte("abc"))
		}
		if err := bad(w); err == nil {
			t.Fatalf("commit %d is nil", i)
		}
		w2 := writer(t, s, content.WriterOptions{Ref: "r"})
		wantOffset(t, w2, 3)
		closeWriter(t, w2)
		closeWriter(t, w)
	}
}

func resume(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(12, 300_000)
	d := digest.FromBytes(b)
	o := content.WriterOptions{Ref: "r", Total: int64(len(b)), Expected: d}
	var first content.Status
	for from := 0; from < len(b); from += 50_000 {
		w := writer(t, s, o)
		st, err := w.Status(t.Context())
		if err != nil || st.Offset != int64(from) || st.Total != o.Total || st.Ref != "r" {
			t.Fatalf("Status at %d: %+v, %v", from, st, err)
		}
		if from == 0 {
			first = st
		}
		if !st.StartedAt.Equal(first.StartedAt) || st.UpdatedAt.Before(first.UpdatedAt) {
			t.Errorf("at %d: started %v, updated %v; was %v, %v", from, st.StartedAt, st.UpdatedAt, first.StartedAt, first.UpdatedAt)
		}
		if got, want := w.Digest(), digest.FromBytes(b[:from]); got != want {
			t.Errorf("Digest at %d: %s, want %s", from, got, want)
		}
		write(t, w, b[from:from+25_000])
		write(t, w, b[from+25_000:from+50_000])
		before, err := w.Status(t.Context())
		if err != nil {
			t.Fatalf("Status: %v", err)
		}
		closeWriter(t, w)
		st, err = s.Status(t.Context(), "r")
		if err != nil || !st.UpdatedAt.Equal(before.UpdatedAt) || st.Expected != d || st.Offset != int64(from+50_000) {
			t.Errorf("Status after Close: %+v, %v; was %+v", st, err, before)
		}
	}
	w := writer(t, s, o)
	if err := w.Commit(t.Context(), o.Total, d, nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, s, d, b)
}

func startOver(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(13, 500)
	d := digest.FromBytes(b)
	for _, again := range []content.WriterOptions{
		{Ref: "r", Total: 501, Expected: d},
		{Ref: "r", Total: 500, Expected: digest.FromString("x")},
	} {
		w := writer(t, s, content.WriterOptions{Ref: "r", Total: 500, Expected: d})
		wantOffset(t, w, 0)
		write(t, w, b[:100])
		closeWriter(t, w)
		w = writer(t, s, content.WriterOptions{Ref: "r"})
		wantOffset(t, w, 100)
		closeWriter(t, w)
		w = writer(t, s, again)
		wantOffset(t, w, 0)
		if got := w.Digest(); got != digest.FromBytes(nil) {
			t.Errorf("Digest: %s, want that of nothing", got)
		}
		write(t, w, b[:50])
		closeWriter(t, w)
	}
	w := writer(t, s, content.WriterOptions{Ref: "r", Total: 500, Expected: d})
	wantOffset(t, w, 0)
	write(t, w, b)
	if err := w.Commit(t.Context(), 500, d, nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantBytes(t, s, d, b)
}

func truncate(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(14, 500)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, []byte(strings.Repeat("wrong", 200)))
	for size, kind := range map[int64]error{
		-1: errdefs.ErrOutOfRange, 1001: errdefs.ErrOutOfRange, 1: errdefs.ErrNotImplemented, 999: errdefs.ErrNotImplemented,
	} {
		wantKind(t, fmt.Sprintf("Truncate(%d)", size), w.Truncate(t.Context(), size), kind)
	}
	if err := w.Truncate(t.Context(), 1000); err != nil {
		t.Errorf("Truncate(1000): %v", err)
	}
	wantOffset(t, w, 1000)
	closeWriter(t, w)
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	for range 2 {
		if err := w.Truncate(t.Context(), 0); err != nil {
			t.Errorf("Truncate(0): %v", err)
		}
		wantOffset(t, w, 0)
	}
	write(t, w, b[:200])
	closeWriter(t, w)
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, b[200:])
	if got, want := w.Digest(), digest.FromBytes(b); got != want {
		t.Errorf("Digest: %s, want %s", got, want)
	}
	if err := w.Commit(t.Context(), 500, digest.FromBytes(b), nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
}

func abort(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, []byte("abc"))
	closeWriter(t, w)
	wantKind(t, "Abort elsewhere", sub.Stores.In(two).Abort(t.Context(), "r"), errdefs.ErrNotFound)
	if err := s.Abort(t.Context(), "r"); err != nil {
		t.Fatalf("Abort: %v", err)
	}
	wantNoIngest(t, s, "r")
	wantKind(t, "second Abort", s.Abort(t.Context(), "r"), errdefs.ErrNotFound)
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	defer w.Close()
	wantOffset(t, w, 0)
}

func abortOpen(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(15, 500)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	write(t, w, b)
	if err := s.Abort(t.Context(), "r"); err != nil {
		t.Fatalf("Abort: %v", err)
	}
	wantNoIngest(t, s, "r")
	_, err := s.Writer(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "Writer while the aborted one is open", err, errdefs.ErrUnavailable)
	wantKind(t, "Commit", w.Commit(t.Context(), 500, digest.FromBytes(b), nil), errdefs.ErrNotFound)
	wantNoBlob(t, s, digest.FromBytes(b))
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	wantOffset(t, w, 0)
	write(t, w, b)
	if err := w.Commit(t.Context(), 500, digest.FromBytes(b), nil); err != nil {
		t.Errorf("Commit of a new ingest: %v", err)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
}

func writerOver(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(16, 100)
	committed := writer(t, s, content.WriterOptions{Ref: "committed"})
	write(t, committed, b)
	if err := committed.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	closed := writer(t, s, content.WriterOptions{Ref: "closed"})
	write(t, closed, b[:10])
	closeWriter(t, closed)
	failed := writer(t, s, content.WriterOptions{Ref: "failed"})
	wantKind(t, "Commit", failed.Commit(t.Context(), 1, "", nil), errdefs.ErrFailedPrecondition)
	for name, w := range map[string]content.Writer{"committed": committed, "closed": closed, "failed": failed} {
		_, err := w.Write([]byte("more"))
		wantKind(t, "Write of a "+name+" writer", err, errdefs.ErrFailedPrecondition)
		_, err = w.Status(t.Context())
		wantKind(t, "Status of a "+name+" writer", err, errdefs.ErrFailedPrecondition)
		wantKind(t, "Truncate of a "+name+" writer", w.Truncate(t.Context(), 0), errdefs.ErrFailedPrecondition)
		wantKind(t, "Commit of a "+name+" writer", w.Commit(t.Context(), 0, "", nil), errdefs.ErrFailedPrecondition)
		for range 2 {
			closeWriter(t, w)
		}
	}
	if got := closed.Digest(); got != digest.FromBytes(b[:10]) {
		t.Errorf("Digest of a closed writer: %s", got)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
	if st, err := s.Status(t.Context(), "closed"); err != nil || st.Offset != 10 {
		t.Errorf("Status: %+v, %v", st, err)
	}
}

func writerStatus(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	d := digest.FromString("expected")
	before := time.Now()
	w := writer(t, s, content.WriterOptions{Ref: "r", Total: 1000, Expected: d})
	defer w.Close()
	started := time.Now()
	write(t, w, make([]byte, 10))
	own, err := w.Status(t.Context())
	if err != nil {
		t.Fatalf("Status of the writer: %v", err)
	}
	if own.StartedAt.Before(before) || own.StartedAt.After(started) || own.UpdatedAt.Before(started) || own.UpdatedAt.After(time.Now()) {
		t.Errorf("started %v, updated %v", own.StartedAt, own.UpdatedAt)
	}
	st, err := s.Status(t.Context(), "r")
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	want := content.Status{Ref: "r", Offset: 10, Total: 1000, Expected: d, StartedAt: st.StartedAt, UpdatedAt: st.UpdatedAt}
	wantSame(t, "Status", st, want)
	wantSame(t, "Status of the writer", own, want)
}

func listStatuses(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for i, ref := range []string{"b", "a-1", "a", "B", "0"} {
		w := writer(t, s, content.WriterOptions{Ref: ref, Total: 100})
		defer w.Close()
		write(t, w, make([]byte, i))
	}
	defer writer(t, sub.Stores.In(two), content.WriterOptions{Ref: "elsewhere"}).Close()
	for _, c := range []struct{ filters, want []string }{
		{nil, []string{"0", "B", "a", "a-1", "b"}},
		{[]string{"ref==a"}, []string{"a"}},
		{[]string{"ref==a", "ref==b"}, []string{"a", "b"}},
		{[]string{"ref~=^a"}, []string{"a", "a-1"}},
		{[]string{"total==100"}, []string{}},
	} {
		all, err := s.ListStatuses(t.Context(), c.filters...)
		if err != nil {
			t.Errorf("ListStatuses(%q): %v", c.filters, err)
		}
		refs := []string{}
		for _, st := range all {
			refs = append(refs, st.Ref)
			if single, err := s.Status(t.Context(), st.Ref); err != nil || !cmp.Equal(single, st) {
				t.Errorf("Status(%s): %+v, %v; the list says %+v", st.Ref, single, err, st)
			}
		}
		wantSame(t, fmt.Sprintf("ListStatuses(%q)", c.filters), refs, c.want)
	}
	_, err := s.ListStatuses(t.Context(), "ref==")
	wantKind(t, "a bad filter", err, errdefs.ErrInvalidArgument)
}

func badOptions(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for name, o := range map[string]content.WriterOptions{
		"no ref":             {Total: 1},
		"ref of 4097 bytes":  {Ref: strings.Repeat("x", 4097)},
		"total below 0":      {Ref: "r", Total: -1},
		"a malformed digest": {Ref: "r", Expected: "sha256:1"},
	} {
		_, err := s.Writer(t.Context(), o)
		wantKind(t, name, err, errdefs.ErrInvalidArgument)
	}
	if all, err := s.ListStatuses(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("ListStatuses: %v, %v; want none", all, err)
	}
}

func commitLabels(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	d := put(t, s, []byte("x"), map[string]string{"a": "1", "containerd.io/x.y": "dots", "gone": ""})
	wantSame(t, "labels", info(t, s, d).Labels, map[string]string{"a": "1", "containerd.io/x.y": "dots"})
	many := map[string]string{}
	for i := range 300 {
		many[fmt.Sprintf("key-%03d", i)] = strings.Repeat("v", 4089)
	}
	d = put(t, s, []byte("y"), many)
	wantSame(t, "more than a MiB of labels", info(t, s, d).Labels, many)
}

func badLabels(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for _, labels := range []map[string]string{{"": "v"}, {"k": strings.Repeat("v", 4096)}} {
		w := writer(t, s, content.WriterOptions{Ref: "r"})
		wantKind(t, "Commit", w.Commit(t.Context(), 0, "", labels), errdefs.ErrInvalidArgument)
		if _, err := s.Status(t.Context(), "r"); err != nil {
			t.Errorf("Status: %v; want the ingest kept", err)
		}
		_, err := s.Update(t.Context(), content.Info{Digest: put(t, sub.Stores.In(two), []byte("x"), nil)}, "labels")
		wantKind(t, "Update elsewhere", err, errdefs.ErrNotFound)
		_, err = sub.Stores.In(two).Update(t.Context(), content.Info{Digest: digest.FromString("x"), Labels: labels})
		wantKind(t, "Update", err, errdefs.ErrInvalidArgument)
		if err := sub.Stores.In(two).Delete(t.Context(), digest.FromString("x")); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
}

func updateLabels(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	d := put(t, s, []byte("x"), map[string]string{"a": "1", "b": "2"})
	made := info(t, s, d)
	for _, step := range []struct {
		labels map[string]string
		fields []string
		want   map[string]string
	}{
		{map[string]string{"a": "3", "x.y/z": "4", "no": "5"}, []string{"labels.a", "labels.x.y/z"}, map[string]string{"a": "3", "b": "2", "x.y/z": "4"}},
		{map[string]string{"a": ""}, []string{"labels.a", "labels.absent"}, map[string]string{"b": "2", "x.y/z": "4"}},
		{map[string]string{"c": "1", "d": ""}, nil, map[string]string{"c": "1"}},
		{map[string]string{"e": "1"}, []string{"labels"}, map[string]string{"e": "1"}},
		{nil, nil, nil},
	} {
		got, err := s.Update(t.Context(), content.Info{Digest: d, Size: 99, Labels: step.labels}, step.fields...)
		if err != nil {
			t.Fatalf("Update(%q, %q): %v", step.labels, step.fields, err)
		}
		if len(got.Labels) != len(step.want) || len(got.Labels) > 0 && !cmp.Equal(got.Labels, step.want) {
			t.Errorf("Update(%q, %q): %q, want %q", step.labels, step.fields, got.Labels, step.want)
		}
		if got.Size != 1 || !got.CreatedAt.Equal(made.CreatedAt) || !got.UpdatedAt.After(made.UpdatedAt) {
			t.Errorf("Update: %+v, was %+v", got, made)
		}
		wantSame(t, "Info", info(t, s, d), got)
	}
	wantBytes(t, s, d, []byte("x"))
}

func updateUnknown(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	d := put(t, s, []byte("x"), map[string]string{"a": "1"})
	made := info(t, s, d)
	for _, f := range []string{"size", "digest", "created_at", "label.a", "labels.", "Labels", ""} {
		_, err := s.Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"a": "2"}}, "labels.a", f)
		wantKind(t, fmt.Sprintf("Update of %q", f), err, errdefs.ErrInvalidArgument)
	}
	wantSame(t, "Info", info(t, s, d), made)
}

func digests(t *testing.T, s content.Blobs, filters ...string) []digest.Digest {
	t.Helper()
	all := []digest.Digest{}
	for i, err := range s.List(t.Context(), filters...) {
		if err != nil {
			t.Fatalf("List(%q): %v", filters, err)
		}
		all = append(all, i.Digest)
	}
	return all
}

func list(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	want := []digest.Digest{}
	for i := range 230 {
		want = append(want, put(t, s, body(uint64(i), 10), map[string]string{"i": fmt.Sprint(i)}))
	}
	put(t, sub.Stores.In(two), []byte("elsewhere"), nil)
	slices.Sort(want)
	wantSame(t, "List", digests(t, s), want)
	for i, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if got := info(t, s, i.Digest); !cmp.Equal(got, i) {
			t.Errorf("List has %+v, Info %+v", i, got)
		}
	}
	wantSame(t, "List of a namespace that nobody knows", digests(t, sub.Stores.In(namespace.Scope{Name: "on"})), []digest.Digest{})
}

func filters(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	a := put(t, s, []byte("a"), map[string]string{"tier": "web", "x.y/z": "1"})
	b := put(t, s, []byte("bb"), map[string]string{"tier": "db"})
	both := []digest.Digest{a, b}
	slices.Sort(both)
	for _, c := range []struct {
		filters []string
		want    []digest.Digest
	}{
		{[]string{""}, both},
		{[]string{"digest==" + a.String()}, []digest.Digest{a}},
		{[]string{"size==2"}, []digest.Digest{b}},
		{[]string{"labels.tier==web"}, []digest.Digest{a}},
		{[]string{`labels."x.y/z"`}, []digest.Digest{a}},
		{[]string{"labels.tier==web", "labels.tier==db"}, both},
		{[]string{"labels.tier==web,labels.tier==db"}, []digest.Digest{}},
		{[]string{"labels.tier!=web"}, []digest.Digest{b}},
		{[]string{"labels.tier~=["}, []digest.Digest{}},
	} {
		wantSame(t, fmt.Sprintf("List(%q)", c.filters), digests(t, s, c.filters...), c.want)
	}
	for i, err := range s.List(t.Context(), "digest==") {
		if i.Digest != "" || !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("List with a bad filter: %v, %v", i, err)
		}
	}
}

func listBreak(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	for i := range 5 {
		put(t, s, []byte{byte(i)}, nil)
	}
	n := 0
	for range s.List(t.Context()) {
		// The store is free meanwhile.
		put(t, s, []byte("meanwhile"), nil)
		if n++; n == 1 {
			break
		}
	}
	if got := len(digests(t, s)); got != 6 {
		t.Errorf("%d blobs, want 6", got)
	}
}

func results(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	labels := map[string]string{"a": "1"}
	d := put(t, s, []byte("x"), labels)
	labels["a"] = "changed"
	info(t, s, d).Labels["a"] = "changed"
	for i := range s.List(t.Context()) {
		i.Labels["a"] = "changed"
	}
	updated, err := s.Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"b": "2"}}, "labels.b")
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	updated.Labels["a"] = "changed"
	wantSame(t, "labels", info(t, s, d).Labels, map[string]string{"a": "1", "b": "2"})
}

func deleteThenWrite(t *testing.T, sub *subject) {
	s := sub.Stores.In(one)
	b := body(17, 1000)
	for range 3 {
		d := put(t, s, b, map[string]string{"a": "1"})
		if err := s.Delete(t.Context(), d); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantKind(t, "second Delete", s.Delete(t.Context(), d), errdefs.ErrNotFound)
		wantNoBlob(t, s, d)
		_, err := s.Open(t.Context(), d)
		wantKind(t, "Open", err, errdefs.ErrNotFound)
		wantSame(t, "List", digests(t, s), []digest.Digest{})
	}
	d := put(t, s, b, nil)
	wantBytes(t, s, d, b)
	if got := info(t, s, d).Labels; len(got) != 0 {
		t.Errorf("labels %q of the deleted blob came back", got)
	}
}

func namespaces(t *testing.T, sub *subject) {
	s1, s2 := sub.Stores.In(one), sub.Stores.In(two)
	b := body(18, 1000)
	d := put(t, s1, b, map[string]string{"a": "1"})
	wantNoBlob(t, s2, d)
	_, err := s2.Open(t.Context(), d)
	wantKind(t, "Open", err, errdefs.ErrNotFound)
	wantKind(t, "Delete", s2.Delete(t.Context(), d), errdefs.ErrNotFound)
	wantSame(t, "List", digests(t, s2), []digest.Digest{})

	put(t, s2, b, map[string]string{"b": "2"})
	wantSame(t, "labels in one", info(t, s1, d).Labels, map[string]string{"a": "1"})
	wantSame(t, "labels in two", info(t, s2, d).Labels, map[string]string{"b": "2"})
	if err := s1.Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantNoBlob(t, s1, d)
	wantBytes(t, s2, d, b)
}

// sharedWriter opens a writer of a blob that only the other namespace has.
func sharedWriter(t *testing.T, sub *subject, b []byte) content.Writer {
	t.Helper()
	d := put(t, sub.Stores.In(one), b, map[string]string{"of": "one"})
	w := writer(t, sub.Stores.In(two), content.WriterOptions{Ref: "r", Total: int64(len(b)), Expected: d})
	st, err := w.Status(t.Context())
	if err != nil || st.Offset != int64(len(b)) || st.Total != int64(len(b)) || st.Ref != "r" {
		t.Errorf("Status: %+v, %v; want all of %d bytes there", st, err, len(b))
	}
	if got := w.Digest(); got != d {
		t.Errorf("Digest: %s, want %s", got, d)
	}
	wantNoBlob(t, sub.Stores.In(two), d)
	wantNoIngest(t, sub.Stores.In(two), "r")
	return w
}

func shared(t *testing.T, sub *subject) {
	s := sub.Stores.In(two)
	b := body(19, 1000)
	d := digest.FromBytes(b)
	w := sharedWriter(t, sub, b)
	wantKind(t, "Commit of another size", w.Commit(t.Context(), 999, d, nil), errdefs.ErrFailedPrecondition)
	w = writer(t, s, content.WriterOptions{Ref: "r", Expected: d})
	wantKind(t, "Commit of another digest", w.Commit(t.Context(), 0, digest.FromString("x"), nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, s, d)
	w = writer(t, s, content.WriterOptions{Ref: "r", Expected: d})
	wantOffset(t, w, 1000)
	_, err := s.Writer(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "second Writer", err, errdefs.ErrUnavailable)
	if err := w.Commit(t.Context(), 1000, d, map[string]string{"of": "two"}); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	closeWriter(t, w)
	wantBytes(t, s, d, b)
	wantSame(t, "labels", info(t, s, d).Labels, map[string]string{"of": "two"})
	if err := sub.Stores.In(one).Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantBytes(t, s, d, b)
}

func sharedWritten(t *testing.T, sub *subject) {
	s := sub.Stores.In(two)
	b := body(20, 1000)
	w := sharedWriter(t, sub, b)
	write(t, w, []byte(" and more"))
	all := append(slices.Clone(b), " and more"...)
	d := digest.FromBytes(all)
	if got := w.Digest(); got != d {
		t.Errorf("Digest: %s, want %s", got, d)
	}
	if st, err := s.Status(t.Context(), "r"); err != nil || st.Offset != 1009 {
		t.Errorf("Status: %+v, %v", st, err)
	}
	if err := w.Commit(t.Context(), 1009, d, nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, s, d, all)
	wantNoBlob(t, s, digest.FromBytes(b))
	wantBytes(t, sub.Stores.In(one), digest.FromBytes(b), b)
	wantNoBlob(t, sub.Stores.In(one), d)
}

func sharedTruncated(t *testing.T, sub *subject) {
	s := sub.Stores.In(two)
	b := body(21, 1000)
	w := sharedWriter(t, sub, b)
	if err := w.Truncate(t.Context(), 0); err != nil {
		t.Fatalf("Truncate: %v", err)
	}
	wantOffset(t, w, 0)
	write(t, w, b[:10])
	closeWriter(t, w)
	wantBytes(t, sub.Stores.In(one), digest.FromBytes(b), b)
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	wantOffset(t, w, 10)
	if err := w.Commit(t.Context(), 10, digest.FromBytes(b[:10]), nil); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantBytes(t, s, digest.FromBytes(b[:10]), b[:10])
}

func sharedDeleted(t *testing.T, sub *subject) {
	s := sub.Stores.In(two)
	b := body(22, 1000)
	d := digest.FromBytes(b)
	w := sharedWriter(t, sub, b)
	if err := sub.Stores.In(one).Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if err := w.Commit(t.Context(), 1000, d, nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, s, d, b)
	wantNoBlob(t, sub.Stores.In(one), d)
}

func sharedOtherTotal(t *testing.T, sub *subject) {
	s := sub.Stores.In(two)
	b := body(23, 1000)
	d := put(t, sub.Stores.In(one), b, nil)
	w := writer(t, s, content.WriterOptions{Ref: "r", Total: 999, Expected: d})
	wantOffset(t, w, 0)
	write(t, w, b)
	wantKind(t, "Commit", w.Commit(t.Context(), 0, d, nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, s, d)
	if err := s.Abort(t.Context(), "r"); err != nil {
		t.Errorf("Abort: %v", err)
	}
}

// leased returns the scope of a new lease, and the lease.
func leased(t *testing.T, sub *subject, id string) (namespace.Scope, lease.Ref) {
	t.Helper()
	scope := namespace.Scope{Name: one.Name, Lease: id}
	if _, err := sub.leases.In(one).Create(t.Context(), id, nil); err != nil {
		t.Fatalf("Create of lease %s: %v", id, err)
	}
	l, err := sub.leases.Lookup(t.Context(), scope)
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	return scope, l
}

func wantMembers(t *testing.T, sub *subject, l lease.Ref, want ...lease.Resource) {
	t.Helper()
	got, err := sub.Members.ListMembers(t.Context(), one.Name, l)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("members of %v: %v, %v; want %v", l, got, err, want)
	}
}

func leaseMissing(t *testing.T, sub *subject) {
	b := body(24, 100)
	gone := namespace.Scope{Name: one.Name, Lease: "gone"}
	_, err := sub.Stores.In(gone).Writer(t.Context(), content.WriterOptions{Ref: "r", Expected: digest.FromBytes(b)})
	wantKind(t, "Writer", err, errdefs.ErrNotFound)
	wantNoIngest(t, sub.Stores.In(one), "r")
	scope, _ := leased(t, sub, "l")
	_, err = sub.Stores.In(namespace.Scope{Name: two.Name, Lease: "l"}).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "Writer under another namespace's lease", err, errdefs.ErrNotFound)

	w := writer(t, sub.Stores.In(scope), content.WriterOptions{Ref: "r"})
	write(t, w, b)
	if err := sub.leases.In(one).Delete(t.Context(), "l", false); err != nil {
		t.Fatalf("Delete of the lease: %v", err)
	}
	wantKind(t, "Commit", w.Commit(t.Context(), 100, "", nil), errdefs.ErrNotFound)
	wantNoBlob(t, sub.Stores.In(one), digest.FromBytes(b))
	// Whoever deletes cares for no lease.
	d := put(t, sub.Stores.In(one), b, nil)
	if err := sub.Stores.In(gone).Delete(t.Context(), d); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if err := sub.Stores.In(gone).Abort(t.Context(), "r"); err != nil {
		t.Errorf("Abort: %v", err)
	}
}

func leaseMembers(t *testing.T, sub *subject) {
	scope, l := leased(t, sub, "l")
	_, other := leased(t, sub, "other")
	s := sub.Stores.In(scope)
	b := body(25, 100)
	w := writer(t, s, content.WriterOptions{Ref: "r"})
	wantMembers(t, sub, l, ingestOf("r"))
	write(t, w, b)
	closeWriter(t, w)
	wantMembers(t, sub, l, ingestOf("r"))
	w = writer(t, s, content.WriterOptions{Ref: "r"})
	if err := w.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	d := digest.FromBytes(b)
	wantMembers(t, sub, l, contentOf(d))
	closeWriter(t, writer(t, s, content.WriterOptions{Ref: "aborted"}))
	wantMembers(t, sub, l, contentOf(d), ingestOf("aborted"))
	if err := s.Abort(t.Context(), "aborted"); err != nil {
		t.Fatalf("Abort: %v", err)
	}
	wantMembers(t, sub, l, contentOf(d))
	wantMembers(t, sub, other)
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantMembers(t, sub, l)
}

func leaseExisting(t *testing.T, sub *subject) {
	b := body(26, 100)
	d := put(t, sub.Stores.In(one), b, nil)
	for i, take := range []func(s content.Store) error{
		func(s content.Store) error {
			_, err := s.Writer(t.Context(), content.WriterOptions{Ref: "r", Expected: d})
			return err
		},
		func(s content.Store) error {
			w := writer(t, s, content.WriterOptions{Ref: "r"})
			write(t, w, b)
			return w.Commit(t.Context(), 0, "", nil)
		},
		func(s content.Store) error {
			return writer(t, s, content.WriterOptions{Ref: "r"}).Commit(t.Context(), 0, d, nil)
		},
	} {
		scope, l := leased(t, sub, fmt.Sprintf("l%d", i))
		wantKind(t, fmt.Sprintf("way %d", i), take(sub.Stores.In(scope)), errdefs.ErrAlreadyExists)
		wantMembers(t, sub, l, contentOf(d))
	}
	// The bytes of another namespace, too.
	b = body(27, 100)
	d = put(t, sub.Stores.In(two), b, nil)
	scope, l := leased(t, sub, "l")
	w := writer(t, sub.Stores.In(scope), content.WriterOptions{Ref: "r", Expected: d})
	if err := w.Commit(t.Context(), 100, d, nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantMembers(t, sub, l, contentOf(d))
}

func race(t *testing.T, sub *subject) {
	b := body(28, 200_000)
	d := digest.FromBytes(b)
	const writers = 8
	errs := make([]error, 2*writers)
	var wg sync.WaitGroup
	for i := range errs {
		s := sub.Stores.In(one)
		if i >= writers {
			s = sub.Stores.In(two)
		}
		wg.Go(func() {
			w, err := s.Writer(t.Context(), content.WriterOptions{Ref: fmt.Sprintf("r%d", i)})
			if err != nil {
				t.Errorf("Writer: %v", err)
				return
			}
			defer w.Close()
			if _, err := w.Write(b); err != nil {
				t.Errorf("Write: %v", err)
			}
			errs[i] = w.Commit(t.Context(), int64(len(b)), d, nil)
		})
	}
	wg.Wait()
	for ns := range 2 {
		won := 0
		for _, err := range errs[ns*writers : (ns+1)*writers] {
			if err == nil {
				won++
			} else {
				wantKind(t, "Commit", err, errdefs.ErrAlreadyExists)
			}
		}
		if won != 1 {
			t.Errorf("%d writers of namespace %d won, want 1", won, ns)
		}
	}
	wantBytes(t, sub.Stores.In(one), d, b)
	wantBytes(t, sub.Stores.In(two), d, b)
}

func manyAtOnce(t *testing.T, sub *subject) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			s := sub.Stores.In(one)
			for j := range 8 {
				b := body(uint64(100+16*i+j), 3000)
				o := content.WriterOptions{Ref: fmt.Sprintf("r%d", i), Total: 3000, Expected: digest.FromBytes(b)}
				if err := content.Put(t.Context(), s, o, bytes.NewReader(b), nil); err != nil {
					t.Errorf("Put: %v", err)
				}
				if j%2 == 0 {
					if err := s.Delete(t.Context(), o.Expected); err != nil {
						t.Errorf("Delete: %v", err)
					}
				} else {
					wantBytes(t, s, o.Expected, b)
				}
			}
		})
	}
	wg.Wait()
	if got := len(digests(t, sub.Stores.In(one))); got != 64 {
		t.Errorf("%d blobs, want 64", got)
	}
}
