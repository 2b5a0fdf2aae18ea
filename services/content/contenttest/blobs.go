package contenttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

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
