package mounter

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/kv"
)

// TestRecordsOfABackupWithoutMounts has one activation that ended since.
func TestRecordsOfABackupWithoutMounts(t *testing.T) {
	n := newNode(t)
	s := n.start(t)
	for _, name := range []string{"ended", "goes on"} {
		activate(t, s, name, activation.Options{}, erofs(n.image("one")), erofs(n.image("one")))
	}
	var r record
	if err := s.needs.Records.View(func(tx *kv.Tx) (err error) {
		r, err = get(tx, "one", "ended")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	deactivate(t, s, "ended")
	if err := s.needs.Records.Update(t.Context(), func(tx *kv.Tx) error { return tx.PutJSON(recordKey("one", "ended"), r) }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Forget(t.Context()), s.empty(t.Context())); err != nil {
		t.Errorf("Forget: %v", err)
	}
	if i, err := s.In(one).Info(t.Context(), "ended"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Info of one that ended = %+v, %v, want %v", i, err, errdefs.ErrNotFound)
	}
	deactivate(t, s, "goes on")
	n.clean(t)
}
