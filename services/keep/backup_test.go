package keep

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/kv"
)

// files is a disk.
type files struct{ Disk }

func (files) SyncDir(string) error { return nil }

// TestTheLastBackupIsTheNewest also where the clock was set back.
func TestTheLastBackupIsTheNewest(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	k, err := Open(Options{
		Root: t.TempDir(), Records: kv.Options{Owner: "test", Schema: 1}, Disk: files{},
		Now: func() time.Time { return now }, Every: time.Hour,
		Objects: func() (bool, error) { return false, nil }, Room: func() error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer k.DB().Close()
	var last string
	for i := range 4 {
		err := k.DB().Update(t.Context(), func(tx *kv.Tx) error { return tx.PutJSON(kv.Key("k"), i) })
		before, _ := k.Backups()
		if err := errors.Join(err, k.Save(t.Context())); err != nil {
			t.Fatal(err)
		}
		all, err := k.Backups()
		if err != nil || len(all) != min(i+1, backupsKept) || slices.Contains(before, all[0]) || all[0] <= last {
			t.Fatalf("backup %d: %q, %v, and before %q", i, all, err, before)
		}
		last = all[0]
		now = now.Add(-time.Hour)
	}
	if entries, err := os.ReadDir(filepath.Dir(last)); err != nil || len(entries) != backupsKept {
		t.Errorf("left: %v, %v", entries, err)
	}
}
