package contentd

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
)

// between closes the store, has change done to its directory, and opens it
// again.
func between(t *testing.T, cfg Config, change func()) *Store {
	t.Helper()
	change()
	return openStore(t, cfg, nil)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

// wantAbsent wants every method to say that there is no such blob.
func wantAbsent(t *testing.T, s *Store, scope namespace.Scope, d digest.Digest) {
	t.Helper()
	in := s.In(scope)
	_, err := in.Open(t.Context(), d)
	wantKind(t, "Open", err, errdefs.ErrNotFound)
	_, err = in.Info(t.Context(), d)
	wantKind(t, "Info", err, errdefs.ErrNotFound)
	_, err = in.Update(t.Context(), content.Info{Digest: d})
	wantKind(t, "Update", err, errdefs.ErrNotFound)
	for i, err := range in.List(t.Context()) {
		if err != nil || i.Digest == d {
			t.Errorf("List: %v, %v", i, err)
		}
	}
}

func TestRecordWithoutAFileIsAbsentUntilItIsWrittenAgain(t *testing.T) {
	for _, running := range []bool{false, true} {
		cfg := testConfig(t)
		s, err := Open(cfg, Needs{})
		must(t, err)
		d := put(t, s, one, body)
		put(t, s, two, body)
		_, err = s.In(two).Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"kept": "yes"}})
		must(t, err)
		path := s.path(d)
		if running {
			must(t, os.Remove(path))
			defer closeStore(t, s)
		} else {
			closeStore(t, s)
			s = between(t, cfg, func() { must(t, os.Remove(path)) })
		}
		wantAbsent(t, s, two, d)
		wantAbsent(t, s, one, d)
		put(t, s, one, body)
		for _, scope := range []namespace.Scope{one, two} {
			if b, err := content.ReadAll(t.Context(), s.In(scope), d, 1<<20); err != nil || !bytes.Equal(b, body) {
				t.Errorf("ReadAll in %s: %d bytes, %v", scope.Name, len(b), err)
			}
		}
		if i, err := s.In(two).Info(t.Context(), d); err != nil || i.Labels["kept"] != "yes" {
			t.Errorf("Info: %+v, %v; want the labels of the other namespace kept", i, err)
		}
	}
}

func TestRecordWithoutAFileCanBeDeleted(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	d := put(t, s, one, body)
	closeStore(t, s)
	s = between(t, cfg, func() { must(t, os.Remove(s.path(d))) })
	remove(t, s, one, d)
	s.sweep(t.Context())
	checkFiles(t, s, "at the end")
	put(t, s, one, body)
	if _, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil {
		t.Errorf("ReadAll: %v", err)
	}
}

func TestBlobOfAnotherSizeIsAbsentUntilItIsWrittenAgain(t *testing.T) {
	for _, running := range []bool{false, true} {
		cfg := testConfig(t)
		s, err := Open(cfg, Needs{})
		must(t, err)
		d := put(t, s, one, body)
		cut := func() {
			must(t, os.Chmod(s.path(d), 0o600))
			must(t, os.Truncate(s.path(d), 10))
		}
		if running {
			cut()
			defer closeStore(t, s)
		} else {
			closeStore(t, s)
			s = between(t, cfg, cut)
		}
		// Nobody borrows them.
		w, err := s.In(two).Writer(t.Context(), content.WriterOptions{Ref: "r", Expected: d})
		must(t, err)
		if st, err := w.Status(t.Context()); err != nil || st.Offset != 0 {
			t.Errorf("Status: %+v, %v", st, err)
		}
		must(t, w.Close())
		wantAbsent(t, s, one, d)
		// Whoever writes the bytes again mends it for everybody.
		put(t, s, two, body)
		for _, scope := range []namespace.Scope{one, two} {
			if b, err := content.ReadAll(t.Context(), s.In(scope), d, 1<<20); err != nil || !bytes.Equal(b, body) {
				t.Errorf("ReadAll in %s: %d bytes, %v", scope.Name, len(b), err)
			}
		}
	}
}

func TestFilesWithoutARecordAreRemoved(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	kept := put(t, s, one, body)
	leaveIngest(t, s, one, "r", []byte("half"))
	closeStore(t, s)
	orphan := digest.FromString("orphan")
	foreign := []string{
		filepath.Join(s.blobs(digest.SHA256), "README"),
		filepath.Join(s.blobs(digest.SHA256), strings.Repeat("A", 64)),
		filepath.Join(s.blobs(digest.SHA512), orphan.Encoded()),
		s.ingestPath("notes"),
	}
	s = between(t, cfg, func() {
		for _, path := range append(foreign, s.path(orphan), s.ingestPath(newFile())) {
			must(t, os.WriteFile(path, []byte("orphan"), 0o600))
		}
		must(t, os.Symlink("/etc/passwd", s.path(digest.FromString("link"))))
	})
	s.sweep(t.Context())
	if hasFile(t, s, orphan) || !hasFile(t, s, kept) {
		t.Errorf("the orphan is there: %t, the blob: %t", hasFile(t, s, orphan), hasFile(t, s, kept))
	}
	if names, err := os.ReadDir(s.ingests()); err != nil || len(names) != 2 {
		t.Errorf("ingest/ has %v, %v; want the ingest and what is not ours", names, err)
	}
	for _, path := range foreign {
		must(t, os.Remove(path)) // is left alone
	}
	if !hasFile(t, s, digest.FromString("link")) {
		t.Error("a link is removed")
	}
	if st, err := s.In(one).Status(t.Context(), "r"); err != nil || st.Offset != 4 {
		t.Errorf("Status: %+v, %v", st, err)
	}
	if b, err := content.ReadAll(t.Context(), s.In(one), kept, 1<<20); err != nil || !bytes.Equal(b, body) {
		t.Errorf("ReadAll: %d bytes, %v", len(b), err)
	}
}

// TestOrphanCanBeBorrowed: a commit that a crash cut short costs no second
// transfer.
func TestOrphanCanBeBorrowed(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	closeStore(t, s)
	s = between(t, cfg, func() { must(t, os.WriteFile(s.path(bodyD), body, 0o400)) })
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r", Total: int64(len(body)), Expected: bodyD})
	must(t, err)
	if st, err := w.Status(t.Context()); err != nil || st.Offset != int64(len(body)) {
		t.Errorf("Status: %+v, %v; want all there", st, err)
	}
	must(t, w.Commit(t.Context(), 0, bodyD, nil))
	s.sweep(t.Context())
	if b, err := content.ReadAll(t.Context(), s.In(one), bodyD, 1<<20); err != nil || !bytes.Equal(b, body) {
		t.Errorf("ReadAll: %d bytes, %v", len(b), err)
	}
}

func TestDamagedIngestStartsOverOrIsAborted(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	for i, damage := range []string{`{`, `{"file":"../../x"}`, `{"file":"` + strings.Repeat("0", 31) + `/"}`, ``} {
		leaveIngest(t, s, one, "r", []byte("half"))
		must(t, s.db.Update(t.Context(), func(tx *kv.Tx) error {
			return tx.Put(ingestKey("one", "r"), []byte(damage))
		}))
		if _, err := s.In(one).Status(t.Context(), "r"); !errors.Is(err, errdefs.ErrDataLoss) {
			t.Errorf("Status with %q: %v", damage, err)
		}
		if i%2 == 0 {
			must(t, s.In(one).Abort(t.Context(), "r"))
		}
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		if st, err := w.Status(t.Context()); err != nil || st.Offset != 0 {
			t.Errorf("Status of the writer: %+v, %v; want it to start over", st, err)
		}
		must(t, w.Close())
		must(t, s.In(one).Abort(t.Context(), "r"))
	}
}

func TestSavedHashOfAnotherKindIsNotUsed(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	for _, change := range []func(*saved){
		func(s *saved) { s.State = []byte("junk") },
		func(s *saved) { s.State = nil },
		func(s *saved) { s.Algorithm = digest.SHA512 },
		func(s *saved) { s.Offset = -1 },
		func(s *saved) { s.Offset = 1 << 40 },
	} {
		leaveIngest(t, s, one, "r", body[:1000])
		must(t, s.db.Update(t.Context(), func(tx *kv.Tx) error {
			rec, err := getIngest(tx, ingestKey("one", "r"))
			if err != nil {
				return err
			}
			change(rec.Saved)
			return tx.PutJSON(ingestKey("one", "r"), rec)
		}))
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		if got := w.Digest(); got != digest.FromBytes(body[:1000]) {
			t.Errorf("Digest: %s", got)
		}
		must(t, w.Close())
		must(t, s.In(one).Abort(t.Context(), "r"))
	}
}

// TestResumeReadsOnlyWhatIsNew: the bytes that a saved hash is of are not read
// again.
func TestResumeReadsOnlyWhatIsNew(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	leaveIngest(t, s, one, "r", body)
	// Whoever reads them would see it.
	names, err := os.ReadDir(s.ingests())
	must(t, err)
	must(t, os.WriteFile(s.ingestPath(names[0].Name()), make([]byte, len(body)), 0o600))
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	must(t, err)
	defer w.Close()
	if got := w.Digest(); got != bodyD {
		t.Errorf("Digest: %s, want %s", got, bodyD)
	}
}

func TestOnlyTheOwnerMayEnter(t *testing.T) {
	cfg := testConfig(t)
	must(t, os.MkdirAll(filepath.Join(cfg.Root, "blobs", "sha256"), 0o755))
	must(t, os.Mkdir(filepath.Join(cfg.Root, "ingest"), 0o777))
	s := openStore(t, cfg, nil)
	d := put(t, s, one, body)
	leaveIngest(t, s, one, "r", body)
	must(t, filepath.WalkDir(cfg.Root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if fi, err := e.Info(); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want 0700", path, fi.Mode(), err)
		}
		return nil
	}))
	for path, want := range map[string]os.FileMode{s.path(d): 0o444, filepath.Join(s.ingests(), "*"): 0o600} {
		names, err := filepath.Glob(path)
		if err != nil || len(names) != 1 {
			t.Fatalf("%s: %v, %v", path, names, err)
		}
		if fi, err := os.Lstat(names[0]); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", names[0], fi.Mode(), err, want)
		}
	}
}

func TestStateOfAnotherDaemonIsRefusedAndUnchanged(t *testing.T) {
	cfg := testConfig(t)
	db, err := kv.Open(kv.Options{Dir: filepath.Join(cfg.Root, "db"), Owner: "snapshotd", Schema: 1})
	must(t, err)
	must(t, db.Close())
	_, err = Open(cfg, Needs{})
	wantKind(t, "Open", err, errdefs.ErrFailedPrecondition)
	if names, err := os.ReadDir(cfg.Root); err != nil || len(names) != 1 {
		t.Errorf("the directory has %v, %v; want only db", names, err)
	}
}

func TestCheckReportsEveryMistake(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Errorf("Default: %v", err)
	}
	err := Config{Root: "here", FreeMinMiB: 1, IngestHours: -1, Sharing: "some"}.Check()
	for _, key := range []string{"root", "free_min_mib", "ingest_hours", "sharing"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("Check: %v; want a word on %s", err, key)
		}
	}
	_, err = Open(Config{}, Needs{})
	wantKind(t, "Open", err, errdefs.ErrInvalidArgument)
}

func writeFile(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func isThere(t testing.TB, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}
