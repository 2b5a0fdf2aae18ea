package contenttest

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
)

var isolatedPromises = []struct {
	name  string
	check func(*testing.T, *subject)
}{
	{"the bytes of an isolated namespace have to be written again", isolated},
	{"a namespace says itself whether others may have its blobs", shareable},
	{"only a namespace that has the blob can share it", shareableWithoutBlob},
	{"where labels cannot be known nothing is shared", labelsUnknown},
	{"nobody waits for what it may not have", isolatedWaitsForNobody},
	{"bytes that nobody has any more have to be written again", isolatedDeleted},
}

// labels are those of namespaces, for as long as their keeper answers.
type labels struct {
	*namespacetest.Memory
	away bool
}

func (l *labels) Get(ctx context.Context, name string) (namespace.Info, error) {
	if l.away {
		return namespace.Info{}, fmt.Errorf("namespaces do not answer: %w", errdefs.ErrUnavailable)
	}
	return l.Memory.Get(ctx, name)
}

// share sets what a namespace says of sharing.
func (s *subject) share(t *testing.T, scope namespace.Scope, value string) {
	t.Helper()
	info := namespace.Info{Name: scope.Name, Labels: map[string]string{namespace.LabelShareable: value}}
	if _, err := s.namespaces.Update(t.Context(), info); err != nil {
		t.Fatalf("Update of namespace %s: %v", scope.Name, err)
	}
}

// wantBorrowed opens a writer of a blob in another namespace, and wants it to
// begin at the blob's end, or at 0.
func wantBorrowed(t *testing.T, s content.Store, b []byte, borrowed bool) {
	t.Helper()
	w := writer(t, s, content.WriterOptions{Ref: "r", Total: int64(len(b)), Expected: digest.FromBytes(b)})
	want := int64(0)
	if borrowed {
		want = int64(len(b))
	}
	wantOffset(t, w, want)
	closeWriter(t, w)
}

func isolated(t *testing.T, sub *subject) {
	s := sub.Stores.In(two)
	b := body(40, 1000)
	d := put(t, sub.Stores.In(one), b, map[string]string{"of": "one"})
	o := content.WriterOptions{Ref: "r", Total: 1000, Expected: d}
	w := writer(t, s, o)
	wantOffset(t, w, 0)
	if got := w.Digest(); got != digest.FromBytes(nil) {
		t.Errorf("Digest: %s, want that of nothing", got)
	}
	if st, err := s.Status(t.Context(), "r"); err != nil || st.Offset != 0 || st.Total != 1000 {
		t.Errorf("Status: %+v, %v", st, err)
	}
	write(t, w, b[:999])
	wantKind(t, "Commit of all but one byte", w.Commit(t.Context(), 1000, d, nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, s, d)
	w = writer(t, s, o)
	wantOffset(t, w, 999)
	write(t, w, b[999:])
	if err := w.Commit(t.Context(), 1000, d, map[string]string{"of": "two"}); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, s, d, b)
	wantNoIngest(t, s, "r")
	wantSame(t, "labels in one", info(t, sub.Stores.In(one), d).Labels, map[string]string{"of": "one"})
	wantSame(t, "labels in two", info(t, s, d).Labels, map[string]string{"of": "two"})
	if err := sub.Stores.In(one).Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantBytes(t, s, d, b)
}

func shareable(t *testing.T, sub *subject) {
	for i, value := range []string{"true", "false", "True", "1"} {
		b := body(uint64(41+i), 1000)
		put(t, sub.Stores.In(one), b, nil)
		sub.share(t, two, "true") // of no use: it has not the blob
		wantBorrowed(t, sub.Stores.In(two), b, false)
		sub.share(t, one, value)
		wantBorrowed(t, sub.Stores.In(two), b, value == "true")
		sub.share(t, one, "")
		wantBorrowed(t, sub.Stores.In(two), b, false)
	}
}

func shareableWithoutBlob(t *testing.T, sub *subject) {
	three := namespace.Scope{Name: "three"}
	b := body(45, 1000)
	put(t, sub.Stores.In(one), b, nil)
	sub.share(t, three, "true")
	wantBorrowed(t, sub.Stores.In(two), b, false)
	put(t, sub.Stores.In(three), b, nil)
	wantBorrowed(t, sub.Stores.In(two), b, true)
}

func labelsUnknown(t *testing.T, sub *subject) {
	b := body(46, 1000)
	put(t, sub.Stores.In(one), b, nil)
	sub.share(t, one, "true")
	sub.namespaces.away = true
	wantBorrowed(t, sub.Stores.In(two), b, false)
	put(t, sub.Stores.In(two), b, nil)
	wantBytes(t, sub.Stores.In(two), digest.FromBytes(b), b)
}

func isolatedDeleted(t *testing.T, sub *subject) {
	b := body(47, 1000)
	d := put(t, sub.Stores.In(one), b, nil)
	sub.share(t, one, "true")
	if err := sub.Stores.In(one).Delete(t.Context(), d); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantBorrowed(t, sub.Stores.In(two), b, false)
}

func isolatedWaitsForNobody(t *testing.T, sub *subject) {
	b := body(48, 1000)
	o := content.WriterOptions{Ref: "r", Total: 1000, Expected: digest.FromBytes(b)}
	first := writer(t, sub.Stores.In(one), o)
	second := writer(t, sub.Stores.In(two), o)
	for _, w := range []content.Writer{first, second} {
		write(t, w, b)
		if err := w.Commit(t.Context(), 0, "", nil); err != nil {
			t.Errorf("Commit: %v", err)
		}
	}
	wantBytes(t, sub.Stores.In(one), o.Expected, b)
	wantBytes(t, sub.Stores.In(two), o.Expected, b)
}
