package snapshotd

import (
	"testing"
	"time"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
)

// TestACheckFindsWhatDoesNotGo, of a snapshotter that is there, and of one that is
// not, and nothing that was removed just now.
func TestACheckFindsWhatDoesNotGo(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	long := time.Now().Add(-2 * stuckTime)
	must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error {
		for id, row := range map[uint64]trash{
			1: {Since: long, Snapshotter: Overlayfs}, 2: {Since: long, Snapshotter: "away"}, 3: {Since: time.Now(), Snapshotter: Overlayfs},
		} {
			must(t, tx.PutJSON(trashKey(id), row))
		}
		return nil
	}))
	got := findings(t, s, fsck.Options{})
	for _, want := range []string{"trash overlayfs/1", "trash away/2"} {
		if f, ok := got[want]; !ok || f.Severity != fsck.Waste {
			t.Errorf("of %s is found %+v", want, f)
		}
	}
	if len(got) != 2 {
		t.Errorf("found %+v", got)
	}
}
