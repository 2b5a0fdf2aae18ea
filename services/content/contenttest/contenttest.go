// Package contenttest has the promises of package content as tests, and a store
// in memory that keeps them.
package contenttest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
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

// RunIsolated is Run for stores of the policy [content.Isolated], with the
// namespaces whose labels they ask for. Where every namespace shares what it has
// they keep all promises, and where some do not also those of the policy.
func RunIsolated(t *testing.T, open func(t *testing.T, leases lease.Registry, namespaces content.Namespaces) Subject) {
	s := &subject{}
	openWith := func(t *testing.T, leases lease.Registry) Subject { return open(t, leases, s.namespaces) }
	t.Run("all share", func(t *testing.T) {
		s.namespaces = &labels{Memory: namespacetest.NewMemory()}
		s.share(t, one, "true")
		s.share(t, two, "true")
		Run(t, openWith)
	})
	for _, p := range isolatedPromises {
		t.Run(p.name, func(t *testing.T) {
			s.leases, s.namespaces = &leasetest.Memory{}, &labels{Memory: namespacetest.NewMemory()}
			s.Subject = openWith(t, s.leases)
			p.check(t, s)
		})
	}
}

// A subject comes with the leases that it knows, and the labels of namespaces
// where its policy asks for them.
type subject struct {
	Subject
	leases     *leasetest.Memory
	namespaces *labels
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
	{"of those who expect one digest one brings it and the others wait", waitForTheFirst},
	{"when the first ends without a commit one of the others goes on", oneGoesOn},
	{"who waits holds its ref and is let go with its caller", waitingHoldsTheRef},
	{"nobody waits for what it does not expect", anotherTotalWaitsForNobody},
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
