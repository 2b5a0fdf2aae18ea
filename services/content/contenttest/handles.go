package contenttest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

// RunFiles tests the files of what open returns. It calls open once per promise
// and expects no content each time.
func RunFiles(t *testing.T, open func(t *testing.T) content.FileStores) {
	for _, p := range filePromises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var filePromises = []struct {
	name  string
	check func(*testing.T, content.FileStores)
}{
	{"the file of a blob has its bytes and is for reading only", fileRead},
	{"the file of a blob is one of a namespace", fileOfNamespace},
	{"an ingest is what its file has", fileWritten},
	{"an ingest may be written at any place by many", fileWrittenAnywhere},
	{"an ingest is read as it grows", fileTail},
	{"commit of a file that is open keeps the ingest", fileKeptOpen},
	{"what was digested is not what is committed, if it changed", fileChanged},
	{"a file with holes is no blob", fileHoles},
	{"an ingest is resumed by a writer of either kind", fileResumed},
	{"a file that its writer kept is not what others write to", fileKeptAfterClose},
	{"one writer of either kind holds a ref", fileRefHeld},
	{"an ingest that is aborted is over for its file's writer", fileAborted},
	{"a file is truncated to nothing", fileTruncated},
	{"the bytes of another namespace need no file, and lend none", fileBorrowed},
	{"a file's writer that is over stays so", fileWriterOver},
}

func fileWriter(t *testing.T, s content.Files, o content.WriterOptions) content.FileWriter {
	t.Helper()
	w, err := s.FileWriter(t.Context(), o)
	if err != nil {
		t.Fatalf("FileWriter(%+v): %v", o, err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// fill writes b to the file of w at offset, and closes it.
func fill(t *testing.T, w content.FileWriter, b []byte, offset int64) {
	t.Helper()
	f := file(t, w)
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func file(t *testing.T, w content.FileWriter) *os.File {
	t.Helper()
	f, err := w.File(t.Context())
	if err != nil {
		t.Fatalf("File: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantFileOffset(t *testing.T, w content.FileWriter, want int64) {
	t.Helper()
	if st, err := w.Status(t.Context()); err != nil || st.Offset != want {
		t.Errorf("Status: offset %d, %v; want %d", st.Offset, err, want)
	}
}

func fileRead(t *testing.T, stores content.FileStores) {
	b := body(1, 100_000)
	d := put(t, stores.In(one), b, nil)
	s := stores.Files(one)
	f, err := s.OpenFile(t.Context(), d)
	if err != nil {
		t.Fatalf("OpenFile: %v", err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("a blob was written to")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("a blob was truncated")
	}
	// Who has another file of it reads at another place.
	other, err := s.OpenFile(t.Context(), d)
	if err != nil {
		t.Fatalf("OpenFile: %v", err)
	}
	defer other.Close()
	if err := stores.In(one).Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{f, other} {
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes, %v; want the blob's", len(got), err)
		}
	}
}

func fileOfNamespace(t *testing.T, stores content.FileStores) {
	d := put(t, stores.In(one), body(2, 100), nil)
	_, err := stores.Files(two).OpenFile(t.Context(), d)
	wantKind(t, "OpenFile of another namespace's", err, errdefs.ErrNotFound)
	_, err = stores.Files(one).OpenFile(t.Context(), digest.FromString("none"))
	wantKind(t, "OpenFile of none", err, errdefs.ErrNotFound)
	_, err = stores.Files(one).OpenFile(t.Context(), "../../etc/passwd")
	wantKind(t, "OpenFile of no digest", err, errdefs.ErrInvalidArgument)
	_, err = stores.Files(one).FileWriter(t.Context(), content.WriterOptions{})
	wantKind(t, "FileWriter without a ref", err, errdefs.ErrInvalidArgument)
	_, err = stores.Files(one).FileWriter(t.Context(), content.WriterOptions{Ref: "r", Expected: d})
	wantKind(t, "FileWriter of what is there", err, errdefs.ErrAlreadyExists)
}

func fileWritten(t *testing.T, stores content.FileStores) {
	b := body(3, 50_000)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	wantFileOffset(t, w, 0)
	fill(t, w, b[:20_000], 0)
	wantFileOffset(t, w, 20_000)
	if st, err := stores.In(one).Status(t.Context(), "r"); err != nil || st.Offset != 20_000 {
		t.Errorf("Status of the ref: %+v, %v", st, err)
	}
	if d, err := w.Digest(t.Context()); err != nil || d != digest.FromBytes(b[:20_000]) {
		t.Errorf("Digest: %s, %v", d, err)
	}
	fill(t, w, b[20_000:], 20_000)
	if d, err := w.Digest(t.Context()); err != nil || d != digest.FromBytes(b) {
		t.Errorf("Digest: %s, %v", d, err)
	}
	if err := w.Commit(t.Context(), int64(len(b)), digest.SHA512.FromBytes(b), map[string]string{"a": "1"}); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(one), digest.SHA512.FromBytes(b), b)
	if i := info(t, stores.In(one), digest.SHA512.FromBytes(b)); i.Labels["a"] != "1" {
		t.Errorf("Info: %+v", i)
	}
	wantNoIngest(t, stores.In(one), "r")
}

func fileWrittenAnywhere(t *testing.T, stores content.FileStores) {
	b := body(4, 64<<10)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r", Total: int64(len(b)), Expected: digest.FromBytes(b)})
	f := file(t, w)
	errs := make(chan error)
	for i := range 8 {
		part := b[i*8<<10 : (i+1)*8<<10]
		go func() {
			_, err := f.WriteAt(part, int64(i*8<<10))
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	if err := w.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(one), digest.FromBytes(b), b)
}

// fileTail reads what a writer of either kind writes, through its commit.
func fileTail(t *testing.T, stores content.FileStores) {
	s, b := stores.Files(one), body(13, 30_000)
	_, _, err := s.OpenIngest(t.Context(), "r")
	wantKind(t, "OpenIngest of none", err, errdefs.ErrNotFound)
	read := func(f *os.File, offset, size int64) {
		t.Helper()
		got := make([]byte, size-offset)
		if n, err := f.ReadAt(got, offset); n < len(got) || !bytes.Equal(got, b[offset:size]) {
			t.Errorf("%d bytes at %d, %v; want the %d that were written", n, offset, err, len(got))
		}
	}
	w := writer(t, stores.In(one), content.WriterOptions{Ref: "r"})
	write(t, w, b[:10_000])
	f, st, err := s.OpenIngest(t.Context(), "r")
	if err != nil || st.Offset != 10_000 || st.Ref != "r" {
		t.Fatalf("OpenIngest: %+v, %v", st, err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("who may read an ingest wrote it")
	}
	read(f, 0, 10_000)
	write(t, w, b[10_000:20_000])
	read(f, 10_000, 20_000)
	closeWriter(t, w)
	l := fileWriter(t, s, content.WriterOptions{Ref: "r"})
	fill(t, l, b[20_000:], 20_000)
	read(f, 20_000, 30_000)
	if err := l.Commit(t.Context(), int64(len(b)), digest.FromBytes(b), nil); err != nil {
		t.Fatalf("Commit while somebody reads: %v", err)
	}
	read(f, 0, 30_000)
	_, _, err = stores.Files(one).OpenIngest(t.Context(), "r")
	wantKind(t, "OpenIngest of what is committed", err, errdefs.ErrNotFound)
}

func fileKeptOpen(t *testing.T, stores content.FileStores) {
	b := body(5, 10_000)
	d := digest.FromBytes(b)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	fill(t, w, b, 0)
	kept := file(t, w)
	wantKind(t, "Commit", w.Commit(t.Context(), int64(len(b)), d, nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, stores.In(one), d)
	kept.Close()
	w = fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	wantFileOffset(t, w, int64(len(b)))
	if err := w.Commit(t.Context(), int64(len(b)), d, nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(one), d, b)
}

func fileChanged(t *testing.T, stores content.FileStores) {
	b := body(6, 10_000)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	fill(t, w, b, 0)
	d, err := w.Digest(t.Context())
	if err != nil || d != digest.FromBytes(b) {
		t.Fatalf("Digest: %s, %v", d, err)
	}
	fill(t, w, []byte("other bytes"), 500)
	wantKind(t, "Commit", w.Commit(t.Context(), 0, d, nil), errdefs.ErrFailedPrecondition)
	wantNoBlob(t, stores.In(one), d)
	if st, err := stores.In(one).Status(t.Context(), "r"); err != nil || st.Offset != int64(len(b)) {
		t.Errorf("Status: %+v, %v; want the ingest kept", st, err)
	}
}

func fileHoles(t *testing.T, stores content.FileStores) {
	sizes := 0
	for _, size := range []int64{1 << 60, 1 << 43, 1 << 30} {
		w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
		f := file(t, w)
		if err := f.Truncate(size); err != nil {
			w.Close()
			continue // the file system has not so many
		}
		f.Close()
		sizes++
		_, err := w.Digest(t.Context())
		wantKind(t, "Digest", err, errdefs.ErrFailedPrecondition)
		wantKind(t, "Commit", w.Commit(t.Context(), 0, "", nil), errdefs.ErrFailedPrecondition)
		// Nobody else reads it either.
		again := writer(t, stores.In(one), content.WriterOptions{Ref: "r"})
		wantOffset(t, again, 0)
		closeWriter(t, again)
	}
	if sizes == 0 {
		t.Error("no file had holes")
	}
}

func fileResumed(t *testing.T, stores content.FileStores) {
	b := body(7, 30_000)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	fill(t, w, b[:10_000], 0)
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	plain := writer(t, stores.In(one), content.WriterOptions{Ref: "r"})
	wantOffset(t, plain, 10_000)
	if got := plain.Digest(); got != digest.FromBytes(b[:10_000]) {
		t.Errorf("Digest: %s", got)
	}
	write(t, plain, b[10_000:20_000])
	closeWriter(t, plain)
	w = fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	wantFileOffset(t, w, 20_000)
	fill(t, w, b[20_000:], 20_000)
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	plain = writer(t, stores.In(one), content.WriterOptions{Ref: "r"})
	if err := plain.Commit(t.Context(), int64(len(b)), digest.FromBytes(b), nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(one), digest.FromBytes(b), b)
}

// fileKeptAfterClose is why the state of a hash is not all that makes an ingest
// one that can be gone on with.
func fileKeptAfterClose(t *testing.T, stores content.FileStores) {
	b := body(8, 20_000)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	fill(t, w, b[:10_000], 0)
	kept := file(t, w)
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	again := writer(t, stores.In(one), content.WriterOptions{Ref: "r"})
	st, err := again.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write(t, again, b[st.Offset:])
	if _, err := kept.WriteAt(make([]byte, 30_000), 0); err != nil {
		t.Fatal(err)
	}
	if err := again.Commit(t.Context(), int64(len(b)), digest.FromBytes(b), nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if _, err := kept.WriteAt(make([]byte, 40_000), 0); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, stores.In(one), digest.FromBytes(b), b)
}

func fileRefHeld(t *testing.T, stores content.FileStores) {
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	_, err := stores.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "Writer", err, errdefs.ErrUnavailable)
	_, err = stores.Files(one).FileWriter(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "FileWriter", err, errdefs.ErrUnavailable)
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	plain := writer(t, stores.In(one), content.WriterOptions{Ref: "r"})
	_, err = stores.Files(one).FileWriter(t.Context(), content.WriterOptions{Ref: "r"})
	wantKind(t, "FileWriter", err, errdefs.ErrUnavailable)
	closeWriter(t, plain)
}

func fileAborted(t *testing.T, stores content.FileStores) {
	b := body(9, 1000)
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	kept := file(t, w)
	if _, err := kept.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := stores.In(one).Abort(t.Context(), "r"); err != nil {
		t.Fatalf("Abort: %v", err)
	}
	_, err := w.Status(t.Context())
	wantKind(t, "Status", err, errdefs.ErrNotFound)
	_, err = w.File(t.Context())
	wantKind(t, "File", err, errdefs.ErrNotFound)
	kept.Close()
	wantKind(t, "Commit", w.Commit(t.Context(), 0, digest.FromBytes(b), nil), errdefs.ErrNotFound)
	wantNoBlob(t, stores.In(one), digest.FromBytes(b))
}

func fileTruncated(t *testing.T, stores content.FileStores) {
	w := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "r"})
	fill(t, w, body(10, 5000), 0)
	wantKind(t, "Truncate past the end", w.Truncate(t.Context(), 5001), errdefs.ErrOutOfRange)
	wantKind(t, "Truncate in between", w.Truncate(t.Context(), 1), errdefs.ErrNotImplemented)
	if err := w.Truncate(t.Context(), 0); err != nil {
		t.Fatalf("Truncate: %v", err)
	}
	wantFileOffset(t, w, 0)
	fill(t, w, []byte("new"), 0)
	if err := w.Commit(t.Context(), 3, digest.FromString("new"), nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(one), digest.FromString("new"), []byte("new"))
}

func fileBorrowed(t *testing.T, stores content.FileStores) {
	b := body(11, 10_000)
	d := put(t, stores.In(one), b, nil)
	w := fileWriter(t, stores.Files(two), content.WriterOptions{Ref: "r", Expected: d})
	if !w.Borrows() {
		t.Error("the writer does not borrow")
	}
	wantFileOffset(t, w, int64(len(b)))
	if err := w.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(two), d, b)
	if err := stores.In(two).Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	w = fileWriter(t, stores.Files(two), content.WriterOptions{Ref: "r", Expected: d})
	fill(t, w, []byte("more"), int64(len(b)))
	if w.Borrows() {
		t.Error("the writer borrows what it wrote to")
	}
	more := append(bytes.Clone(b), "more"...)
	if err := w.Commit(t.Context(), 0, digest.FromBytes(more), nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	wantBytes(t, stores.In(two), digest.FromBytes(more), more)
	wantBytes(t, stores.In(one), d, b)
}

func fileWriterOver(t *testing.T, stores content.FileStores) {
	b := body(12, 100)
	committed := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "committed"})
	fill(t, committed, b, 0)
	if err := committed.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if d, err := committed.Digest(t.Context()); err != nil || d != digest.FromBytes(b) {
		t.Errorf("Digest of what was committed: %s, %v", d, err)
	}
	closed := fileWriter(t, stores.Files(one), content.WriterOptions{Ref: "closed"})
	if err := closed.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for name, w := range map[string]content.FileWriter{"committed": committed, "closed": closed} {
		_, err := w.File(t.Context())
		wantKind(t, "File of a "+name+" writer", err, errdefs.ErrFailedPrecondition)
		_, err = w.Status(t.Context())
		wantKind(t, "Status of a "+name+" writer", err, errdefs.ErrFailedPrecondition)
		wantKind(t, "Truncate of a "+name+" writer", w.Truncate(t.Context(), 0), errdefs.ErrFailedPrecondition)
		wantKind(t, "Commit of a "+name+" writer", w.Commit(t.Context(), 0, "", nil), errdefs.ErrFailedPrecondition)
		if err := errors.Join(w.Close(), w.Close()); err != nil {
			t.Errorf("Close of a %s writer: %v", name, err)
		}
	}
}
