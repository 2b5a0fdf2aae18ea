package kv

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestGoneWhereNothingCanBeOpened: who hangs on the database is told that there
// will not be one again in this process.
func TestGoneWhereNothingCanBeOpened(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "db"), Owner: "contentd", Schema: 1}
	db, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := db.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	beside := o
	beside.Dir += newSuffix
	if _, err := Restore(t.Context(), beside, &b); err != nil {
		t.Fatal(err)
	}
	select {
	case <-db.Gone():
		t.Fatal("it is gone and nothing was replaced")
	default:
	}
	db.options.Owner = "imaged" // so that neither is one of its own
	if err := db.replaceBy(t.Context(), beside.Dir); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("replaceBy: %v", err)
	}
	select {
	case <-db.Gone():
	default:
		t.Error("it is not gone")
	}
	if err := db.View(func(*Tx) error { return nil }); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("View: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
