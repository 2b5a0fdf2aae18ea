package contenttest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

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
