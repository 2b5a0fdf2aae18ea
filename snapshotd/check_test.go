package snapshotd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/fsck/fscktest"
	"github.com/gantryd/gantry/services/kv"
)

// findings runs a check to its end: what was found of each object.
func findings(t *testing.T, s *Store, o fsck.Options) map[string]fsck.Finding {
	t.Helper()
	all := map[string]fsck.Finding{}
	for item, err := range s.Check(t.Context(), o) {
		must(t, err)
		if f := item.Finding; f != nil {
			all[f.What+" "+f.ID] = *f
		}
	}
	return all
}

// TestCheck has a layer for each object. Who changes bytes as a disk does is found
// by the layer that made them.
func TestCheck(t *testing.T) {
	fscktest.Run(t, func(t *testing.T) fscktest.Subject {
		blobs := difftest.NewBlobs()
		s := openBlobs(t, blobs)
		sn := in(t, s, one)
		layer := func(b string) []byte { return difftest.Tar(difftest.File("file", b)) }
		nameOf := func(id string) string { return strings.TrimPrefix(id, "overlayfs/one/") }
		return fscktest.Subject{
			Checker: s, What: "differs", Heals: true,
			Add: func(t *testing.T, b string) string {
				applyLayer(t, s, blobs, one, prepare(t, sn, b+" key", ""), layer(b))
				commitTo(t, sn, b, b+" key", "")
				return "overlayfs/one/" + b
			},
			Corrupt: func(t *testing.T, id string) {
				r, _, err := sn.read(nameOf(id))
				must(t, err)
				spoil(t, filepath.Join(s.fs(r.ID), "file"))
			},
			Present: func(t *testing.T, id string) bool {
				return look(t, s, one, nameOf(id))["file"] != ""
			},
			Size: func(b string) int64 { return int64(len(layer(b))) },
		}
	})
}

// TestARepairExtractsTheLayerAgain: a file that lost its bytes, and a tree that
// is gone. What was wrong stays until it is named.
func TestARepairExtractsTheLayerAgain(t *testing.T) {
	blobs := difftest.NewBlobs()
	s := openBlobs(t, blobs)
	sn := in(t, s, one)
	m := prepare(t, sn, "key", "")
	applyLayer(t, s, blobs, one, m, difftest.Tar(difftest.File("file", "some bytes")))
	commitTo(t, sn, "base", "key", "")
	m = prepare(t, sn, "key", "base")
	applyLayer(t, s, blobs, one, m, difftest.Tar(difftest.File("other", "more bytes")))
	commitTo(t, sn, "top", "key", "")
	write(t, prepare(t, sn, "key", "top"), "no layer")
	commitTo(t, sn, "written", "key", "")
	if got := findings(t, s, fsck.Options{}); len(got) > 0 {
		t.Fatalf("of what is whole is found %+v", got)
	}
	must(t, os.Truncate(filepath.Join(s.fs(1), "file"), 0))
	must(t, os.RemoveAll(s.path(2)))
	must(t, os.Truncate(filepath.Join(s.fs(3), unsyncedName), 1))
	want := []string{"changed overlayfs/one/base", "missing overlayfs/one/top", "changed overlayfs/one/written"}
	got := findings(t, s, fsck.Options{})
	for _, w := range want {
		if f, ok := got[w]; !ok || f.Severity != fsck.Loss || f.Done != "" {
			t.Errorf("of %s is found %+v", w, f)
		}
	}
	if refs := got[want[0]].Refs; len(refs) != 1 || refs[0].ID != "top" {
		t.Errorf("base is needed by %+v", refs)
	}
	got = findings(t, s, fsck.Options{Repair: true})
	if got[want[0]].Done == "" || got[want[1]].Done == "" || got[want[2]].Done != "" {
		t.Errorf("repaired: %+v", got)
	}
	if files := look(t, s, one, "top"); files["file"] == "" || files["other"] == "" {
		t.Errorf("files after the repair: %v", files)
	}
	got = findings(t, s, fsck.Options{})
	if _, ok := got["quarantine overlayfs/1"]; !ok || len(got) != 2 {
		t.Errorf("after the repair is found %+v", got)
	}
	findings(t, s, fsck.Options{Repair: true, Only: []string{"overlayfs/1"}})
	must(t, s.empty(t.Context()))
	if _, err := os.Stat(s.path(1)); err == nil {
		t.Error("what was named stays")
	}
}

// TestACheckFindsRowsThatLie, and orphans, and mends them.
func TestACheckFindsRowsThatLie(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	chainOf(t, sn, "x", 2) // 1, 2 and 3
	s.last.Store(10)
	must(t, os.Mkdir(s.path(7), 0o700))
	must(t, os.Mkdir(s.path(8), 0o700))
	must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error {
		must(t, tx.PutJSON(unclaimedKey(8), unclaimed{time.Now(), Overlayfs, "why"}))
		must(t, tx.Put(sn.childKey("x1", "nobody"), nil))
		must(t, tx.Delete(sn.childKey("x0", "x1")))
		must(t, tx.PutJSON(dirKey(6), sn.owner("nobody")))
		return tx.Delete(dirKey(1))
	}))
	want := map[string]bool{
		"orphan overlayfs/7": true, "unclaimed overlayfs/8": false, "child overlayfs/one/x1": true,
		"record overlayfs/one/x1": true, "record overlayfs/one/nobody": true, "record overlayfs/one/x0": true,
	}
	for _, repair := range []bool{false, true} {
		got := findings(t, s, fsck.Options{Repair: repair})
		for w, mended := range want {
			if f, ok := got[w]; !ok || (f.Done != "") != (mended && repair) {
				t.Errorf("repair %t: of %s is found %+v", repair, w, f)
			}
		}
	}
	if got := findings(t, s, fsck.Options{}); len(got) != 1 {
		t.Errorf("after the repair is found %+v", got)
	}
}
