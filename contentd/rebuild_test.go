package contentd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

// A library is a store's root whose records can be lost, and what has to be
// there all the same.
type library struct {
	cfg  Config
	want map[where][]byte
}

// newLibrary makes a store with blobs of one namespace, of two that both wrote
// it, and of one that borrowed it; some were deleted. With backups, some of that
// is in one.
func newLibrary(t *testing.T, backups bool) *library {
	t.Helper()
	l := &library{cfg: testConfig(t), want: map[where][]byte{}}
	s, err := Open(l.cfg, Needs{})
	must(t, err)
	add := func(scope namespace.Scope, text string) digest.Digest {
		b := []byte(text)
		d := put(t, s, scope, b)
		l.want[where{scope, d}] = b
		return d
	}
	for i := range 6 {
		add(one, fmt.Sprint("blob ", i))
	}
	must(t, s.AddMember(t.Context(), "one", lease.Ref{ID: "l", Generation: 9}, contentOf(digest.FromString("blob 3"))))
	gone := add(one, "deleted later")
	if backups {
		must(t, s.keeper.Save(t.Context()))
	}
	remove(t, s, one, gone)
	delete(l.want, where{one, gone})
	s.sweep(t.Context())
	add(one, "shared")
	add(two, "shared")
	given := add(one, "given away")
	add(two, "given away")
	remove(t, s, one, given)
	delete(l.want, where{one, given})
	labelled := add(two, "labelled")
	_, err = s.In(two).Update(t.Context(), content.Info{Digest: labelled, Labels: map[string]string{"a": "1"}})
	must(t, err)
	leaveIngest(t, s, one, "half", body)
	closeStore(t, s)
	return l
}

func (l *library) db() string { return filepath.Join(l.cfg.Root, "db") }

// copy is another with the same files.
func (l *library) copy(t *testing.T) *library {
	t.Helper()
	c := &library{cfg: l.cfg, want: l.want}
	c.cfg.Root = filepath.Join(t.TempDir(), "contentd")
	must(t, filepath.WalkDir(l.cfg.Root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := c.cfg.Root + strings.TrimPrefix(path, l.cfg.Root)
		if e.IsDir() {
			return os.Mkdir(to, 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil || e.Name() == "ballast" {
			return err
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			return err
		}
		for name, value := range rawNotes(t, path) {
			if err := unix.Lsetxattr(to, name, value, 0); err != nil {
				return err
			}
		}
		return nil
	}))
	return c
}

// check wants everything to be there that was acknowledged.
func (l *library) check(t *testing.T, s *Store, when string) {
	t.Helper()
	for at, want := range l.want {
		if b, err := content.ReadAll(t.Context(), s.In(at.scope), at.digest, 1<<20); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: %q in %s: %q, %v", when, want, at.scope.Name, b, err)
		}
	}
	for item, err := range s.Check(t.Context(), fsck.Options{Deep: true}) {
		if err != nil {
			t.Fatalf("%s: Check: %v", when, err)
		}
		if f := item.Finding; f != nil && f.Severity == fsck.Loss {
			t.Errorf("%s: %+v", when, f)
		}
	}
}

var ruins = map[string]func(t *testing.T, db string){
	"no MANIFEST": func(t *testing.T, db string) { must(t, os.Remove(filepath.Join(db, "MANIFEST"))) },
	"MANIFEST of zeros": func(t *testing.T, db string) {
		must(t, os.WriteFile(filepath.Join(db, "MANIFEST"), make([]byte, 99), 0o600))
	},
	"an empty directory": func(t *testing.T, db string) { must(t, os.RemoveAll(db)); must(t, os.Mkdir(db, 0o700)) },
	"no directory":       func(t *testing.T, db string) { must(t, os.RemoveAll(db)) },
	"tables are garbage": func(t *testing.T, db string) { eachFile(t, db, ".sst", []byte("garbage")) },
	"tables are empty":   func(t *testing.T, db string) { eachFile(t, db, ".sst", nil) },
}

func eachFile(t *testing.T, dir, ext string, b []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+ext))
	must(t, err)
	for _, n := range names {
		must(t, os.WriteFile(n, b, 0o600))
	}
}

func TestDamagedDatabaseIsMadeAgain(t *testing.T) {
	for _, backups := range []bool{false, true} {
		for name, ruin := range ruins {
			t.Run(fmt.Sprint(name, ", backups ", backups), func(t *testing.T) {
				l := newLibrary(t, backups)
				ruin(t, l.db())
				s := openStore(t, l.cfg, nil)
				l.check(t, s, "after it was rebuilt")
				// What was made from a file is kept from every collection.
				info, err := s.In(two).Info(t.Context(), digest.FromString("labelled"))
				must(t, err)
				if info.Labels["a"] != "1" || info.Labels[rootLabel] == "" {
					t.Errorf("labels: %v", info.Labels)
				}
				members, err := s.ListMembers(t.Context(), "one", lease.Ref{ID: "l", Generation: 9})
				must(t, err)
				if (len(members) == 1) != backups {
					t.Errorf("members of the lease: %v", members)
				}
				_, err = s.In(one).Info(t.Context(), digest.FromString("given away"))
				wantKind(t, "Info of what was deleted", err, errdefs.ErrNotFound)
				_, err = s.In(one).Info(t.Context(), digest.FromString("deleted later"))
				wantKind(t, "Info of what was deleted and collected", err, errdefs.ErrNotFound)
				if aside, _ := filepath.Glob(l.db() + ".damaged-*"); (len(aside) == 1) != (name != "no directory") {
					t.Errorf("put aside: %v", aside)
				}
				if s.keeper.Incomplete() {
					t.Error("it is not over")
				}
				put(t, s, one, body)
			})
		}
	}
}

// TestAnyDamageOfTheDatabaseIsSurvived harms each file of the database in turn.
func TestAnyDamageOfTheDatabaseIsSurvived(t *testing.T) {
	l := newLibrary(t, true)
	names, err := os.ReadDir(l.db())
	must(t, err)
	random := rand.New(rand.NewPCG(11, 0))
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(l.db(), n.Name()))
		must(t, err)
		if len(b) == 0 || n.Name() == "ballast" {
			continue
		}
		flipped := bytes.Clone(b)
		flipped[random.IntN(min(len(b), 4096))] ^= 4
		for what, harmed := range map[string][]byte{"cut": b[:random.IntN(len(b))], "zeroed": make([]byte, len(b)), "flipped": flipped} {
			c := l.copy(t)
			must(t, os.WriteFile(filepath.Join(c.db(), n.Name()), harmed, 0o600))
			s := openStore(t, c.cfg, nil)
			c.check(t, s, n.Name()+" "+what)
		}
	}
}

// TestRebuildSurvivesPowerLoss cuts the power before each change that it makes:
// it starts over.
func TestRebuildSurvivesPowerLoss(t *testing.T) {
	for _, backups := range []bool{false, true} {
		l := newLibrary(t, backups)
		must(t, os.Remove(filepath.Join(l.db(), "MANIFEST")))
		for _, keepNames := range []bool{false, true} {
			for cut := 1; ; cut++ {
				c := l.copy(t)
				p := newPower(t, c.cfg.Root, cut, keepNames)
				s, err := p.open(c.cfg, Needs{})
				if err == nil {
					closeStore(t, s)
				}
				if p.left == nil {
					must(t, err)
					t.Logf("backups %t: %d changes", backups, cut-1)
					break
				}
				p.left.restore(t, c.cfg.Root)
				s, err = Open(c.cfg, Needs{})
				if err != nil {
					t.Fatalf("cut %d: Open: %v", cut, err)
				}
				c.check(t, s, fmt.Sprintf("backups %t, cut %d, names %t", backups, cut, keepNames))
				closeStore(t, s)
				must(t, os.RemoveAll(c.cfg.Root))
			}
		}
	}
}

// TestNotesAreAsDurableAsBlobs loses the power after each commit, and then the
// records.
func TestNotesAreAsDurableAsBlobs(t *testing.T) {
	cfg := testConfig(t)
	p := newPower(t, cfg.Root, 0, true)
	s, err := p.open(cfg, Needs{})
	must(t, err)
	d := put(t, s, two, body)
	must(t, p.cut())
	closeStore(t, s)
	p.left.restore(t, cfg.Root)
	must(t, os.RemoveAll(filepath.Join(cfg.Root, "db")))
	s = openStore(t, cfg, nil)
	if b, err := content.ReadAll(t.Context(), s.In(two), d, 1<<20); err != nil || !bytes.Equal(b, body) {
		t.Errorf("ReadAll: %d bytes, %v", len(b), err)
	}
	wantAbsent(t, s, one, d)
}

// TestDatabaseThatLostItsLastCommitsKnowsMoreThanABackup: the leases of since
// then are in no file.
func TestDatabaseThatLostItsLastCommitsKnowsMoreThanABackup(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	must(t, s.keeper.Save(t.Context()))
	d := put(t, s, two, body)
	m := lease.Ref{ID: "l", Generation: 9}
	must(t, s.AddMember(t.Context(), "two", m, contentOf(d)))
	late := put(t, s, two, []byte("late"))
	db := filepath.Join(cfg.Root, "db")
	logs, err := filepath.Glob(filepath.Join(db, "*.mem"))
	must(t, err)
	files := map[string][]byte{}
	for _, l := range append(logs, filepath.Join(db, "MANIFEST"), filepath.Join(db, "witness")) {
		if files[l], err = os.ReadFile(l); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	// As a kill leaves it, with a log that ends early.
	tables, err := filepath.Glob(filepath.Join(db, "*.sst"))
	must(t, err)
	for _, name := range tables {
		must(t, os.Remove(name))
	}
	for name, b := range files {
		if filepath.Ext(name) == ".mem" {
			at := bytes.LastIndex(b, []byte(late))
			clear(b[at:])
		}
		must(t, os.WriteFile(name, b, 0o600))
	}
	s = openStore(t, cfg, nil)
	if aside, _ := filepath.Glob(db + ".damaged-*"); len(aside) > 0 {
		t.Errorf("it is aside: %v", aside)
	}
	for _, d := range []digest.Digest{d, late} {
		if _, err := s.In(two).Info(t.Context(), d); err != nil {
			t.Errorf("Info: %v", err)
		}
	}
	if members, err := s.ListMembers(t.Context(), "two", m); err != nil || len(members) != 1 {
		t.Errorf("members: %v, %v", members, err)
	}
	put(t, s, two, []byte("more"))
}

func TestBlobsWithoutANoteAreRecovered(t *testing.T) {
	l := newLibrary(t, false)
	for at := range l.want {
		path := (&Store{cfg: l.cfg}).path(at.digest)
		for name := range rawNotes(t, path) {
			must(t, unix.Lremovexattr(path, name))
		}
	}
	must(t, os.RemoveAll(l.db()))
	s := openStore(t, l.cfg, nil)
	for at, want := range l.want {
		b, err := content.ReadAll(t.Context(), s.In(namespace.Scope{Name: "recovered"}), at.digest, 1<<20)
		if err != nil || !bytes.Equal(b, want) {
			t.Errorf("%q: %q, %v", want, b, err)
		}
		wantAbsent(t, s, at.scope, at.digest)
	}
}

func TestNotesOfManyLabelsDoNotFail(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	labels := map[string]string{}
	for i := range 40 {
		labels[fmt.Sprint("label", i)] = strings.Repeat("v", 3000)
	}
	o := content.WriterOptions{Ref: "r", Expected: bodyD}
	must(t, content.Put(t.Context(), s.In(one), o, bytes.NewReader(body), labels))
	if notes := notesOf(s.path(bodyD)); notes["one"].Created == 0 {
		t.Errorf("notes: %v", notes)
	}
}

// TestNotesOfAllWhoWroteABlobStay: whoever writes what is there already adds to
// the file that is there.
func TestNotesOfAllWhoWroteABlobStay(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	for _, scope := range []namespace.Scope{one, two} {
		w, err := s.In(scope).Writer(t.Context(), content.WriterOptions{Ref: "r"}) // which borrows nothing
		must(t, err)
		_, err = w.Write(body)
		must(t, err)
		must(t, w.Commit(t.Context(), 0, bodyD, nil))
	}
	if notes := notesOf(s.path(bodyD)); notes["one"].Created == 0 || notes["two"].Created == 0 {
		t.Errorf("notes: %v", notes)
	}
	checkFiles(t, s, "at the end")
}

// TestNotesAreForWhoIsNotRoot: an owner may not change the attributes of a file
// that he may not write to.
func TestNotesAreForWhoIsNotRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it becomes another user")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "blob")
	must(t, os.WriteFile(path, body, blobMode))
	for _, name := range []string{filepath.Dir(dir), dir} {
		must(t, os.Chmod(name, 0o755))
	}
	must(t, os.Chown(path, 1234, 1234))
	// The user of a thread's file system: with it go root's powers over files.
	runtime.LockOSThread()
	_, err := unix.SetfsuidRetUid(1234)
	must(t, err)
	failed := errors.Join(
		osDisk{}.SetNote(path, notePrefix+"one", []byte("{}")),
		osDisk{}.SetNote(path, notePrefix+"two", []byte("{}")),
		osDisk{}.RemoveNote(path, notePrefix+"one"),
	)
	_, err = unix.SetfsuidRetUid(0)
	runtime.UnlockOSThread()
	must(t, errors.Join(failed, err))
	fi, err := os.Stat(path)
	must(t, err)
	if notes := notesOf(path); len(notes) != 1 || fi.Mode().Perm() != blobMode {
		t.Errorf("notes %v, mode %v", notes, fi.Mode())
	}
}

func TestHostileNotesAreIgnored(t *testing.T) {
	l := newLibrary(t, false)
	d := digest.FromString("blob 1")
	path := (&Store{cfg: l.cfg}).path(d)
	must(t, unix.Lsetxattr(path, notePrefix+"../../x", []byte("{}"), 0))
	must(t, unix.Lsetxattr(path, notePrefix, []byte("{}"), 0))
	must(t, unix.Lsetxattr(path, notePrefix+"three", []byte("{nonsense"), 0))
	must(t, unix.Lsetxattr(path, notePrefix+"one", []byte(`{"c":1,"l":{"":"x"}}`), 0))
	must(t, os.RemoveAll(l.db()))
	s := openStore(t, l.cfg, nil)
	l.check(t, s, "after it was rebuilt")
	var names []string
	_, err := s.Holdings(t.Context())
	must(t, err)
	must(t, s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("have", d.String(), ""), nil) {
			names = append(names, kv.Parts(key)[2])
		}
		return nil
	}))
	if fmt.Sprint(names) != "[one three]" {
		t.Errorf("it is in %q", names)
	}
}
