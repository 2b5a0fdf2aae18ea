package contentd

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
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

	must(t, s.startRebuild())
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
