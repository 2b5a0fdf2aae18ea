package contenttest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

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
	if got := closed.Digest(); got != "" && got != digest.FromBytes(b[:10]) {
		t.Errorf("Digest of a closed writer: %s", got)
	}
	wantBytes(t, s, digest.FromBytes(b), b)
	if st, err := s.Status(t.Context(), "closed"); err != nil || st.Offset != 10 {
		t.Errorf("Status: %+v, %v", st, err)
	}
}

// fileTick is how far the clock of a file system may be behind.
const fileTick = 20 * time.Millisecond

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
	if own.StartedAt.Before(before) || own.StartedAt.After(started) || own.UpdatedAt.Before(started.Add(-fileTick)) || own.UpdatedAt.After(time.Now()) {
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
