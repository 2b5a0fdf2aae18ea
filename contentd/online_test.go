package contentd

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
)

// A beside is a database beside which something happens before the next View.
type beside struct {
	database
	next func()
}

func (b *beside) View(fn func(tx *kv.Tx) error) error {
	if next := b.next; next != nil {
		b.next = nil
		next()
	}
	return b.database.View(fn)
}

func openBeside(t *testing.T) (*Store, *beside) {
	t.Helper()
	b := &beside{}
	s, err := open(testConfig(t), Needs{}, osDisk{}, func(db *kv.DB) database {
		b.database = db
		return b
	})
	must(t, err)
	t.Cleanup(func() { closeStore(t, s) })
	return s, b
}

// TestBlobThatComesWhileFilesAreComparedIsNotLost: after a restore they are, and
// writers are at work.
func TestBlobThatComesWhileFilesAreComparedIsNotLost(t *testing.T) {
	s, db := openBeside(t)
	put(t, s, one, []byte("there before"))
	var d digest.Digest
	db.next = func() { d = put(t, s, one, body) }
	must(t, s.reconcileBlobs())
	if b, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil || !bytes.Equal(b, body) {
		t.Errorf("what was committed meanwhile: %q, %v", b, err)
	}
}

// TestNothingIsCollectedWhileRecordsAreRebuilt: a backup may call trash what was
// written again since.
func TestNothingIsCollectedWhileRecordsAreRebuilt(t *testing.T) {
	s, _ := openBeside(t)
	d := put(t, s, one, body)
	remove(t, s, one, d)
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	put(t, s, one, body)

	must(t, s.keeper.Doubt())
	_, err := s.kv.Replace(t.Context(), &b)
	must(t, err)
	s.sweep(t.Context())
	_, err = s.rebuild(t.Context())
	must(t, err)
	s.sweep(t.Context())
	if got, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil || !bytes.Equal(got, body) {
		t.Errorf("what was written since the backup: %q, %v", got, err)
	}
}

// TestFileThatTakesAnothersPlaceTellsAsMuch: of every namespace that has the
// blob, also when its bytes were written again, or were lost.
func TestFileThatTakesAnothersPlaceTellsAsMuch(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	d := put(t, s, one, body)
	_, err := s.In(one).Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"a": "1"}}, "labels.a")
	must(t, err)
	write := func(when string) {
		t.Helper()
		w, err := s.In(two).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		_, err = w.Write(body)
		must(t, err)
		if err := w.Commit(t.Context(), 0, "", nil); err != nil && !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		notes := notesOf(s.path(d))
		if _, ok := notes["two"]; len(notes) != 2 || !ok || notes["one"].Labels["a"] != "1" {
			t.Errorf("%s: %+v", when, notes)
		}
		if got, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	write("two namespaces wrote it")
	must(t, os.Remove(s.path(d)))
	s.lose(d, errNotWhole)
	write("it was lost")
	must(t, os.Remove(s.path(d)))
	must(t, os.WriteFile(s.path(d), bytes.ToUpper(body), blobMode))
	write("it was corrupt")
}

// TestWhatIsCollectedWhileItIsCheckedIsNoOrphan: the files are listed before the
// records are read.
func TestWhatIsCollectedWhileItIsCheckedIsNoOrphan(t *testing.T) {
	s, db := openBeside(t)
	d := put(t, s, one, body)
	db.next = func() {
		remove(t, s, one, d)
		s.sweep(t.Context())
	}
	if all := findings(t, s, fsck.Options{}); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

// TestIngestThatIsWrittenSlowlyIsNoOrphan: it has no record yet, and its file is
// old.
func TestIngestThatIsWrittenSlowlyIsNoOrphan(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	must(t, err)
	defer w.Close()
	_, err = w.Write(body)
	must(t, err)
	s.now = func() time.Time { return time.Now().Add(2 * s.cfg.ingestAge()) }
	if all := findings(t, s, fsck.Options{Repair: true}); len(all) > 0 {
		t.Errorf("%+v", all)
	}
	must(t, w.Commit(t.Context(), 0, bodyD, nil))
}
