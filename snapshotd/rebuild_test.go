package snapshotd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/backup/backuptest"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/snapshot"
)

// TestBackup keeps names and values as labels of snapshots.
func TestBackup(t *testing.T) {
	backuptest.Run(t, func(t *testing.T) backuptest.Subject {
		s := openTest(t, testConfig(t), quietNeeds(t))
		sn := in(t, s, one)
		return backuptest.Subject{
			Keeper: s,
			Set: func(t *testing.T, name, value string) {
				if _, err := sn.Prepare(t.Context(), name, "", snapshot.Options{}); err != nil && !errdefs.IsAlreadyExists(err) {
					t.Fatal(err)
				}
				_, err := sn.Update(t.Context(), snapshot.Info{Name: name, Labels: map[string]string{"value": value}})
				must(t, err)
			},
			Get: func(t *testing.T, name string) string {
				i, err := sn.Stat(t.Context(), name)
				if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
					t.Fatal(err)
				}
				return i.Labels["value"]
			},
		}
	})
}

// ruins are ways to lose a database.
var ruins = map[string]func(t *testing.T, db string){
	"no MANIFEST":        func(t *testing.T, db string) { must(t, os.Remove(filepath.Join(db, "MANIFEST"))) },
	"an empty directory": func(t *testing.T, db string) { must(t, os.RemoveAll(db)); must(t, os.Mkdir(db, 0o700)) },
	"no directory":       func(t *testing.T, db string) { must(t, os.RemoveAll(db)) },
}

// TestALostDatabaseIsMadeAgain: committed snapshots are there with their
// parents and labels, and active ones that a container may run on; what was made
// again is collected only when somebody has looked.
func TestALostDatabaseIsMadeAgain(t *testing.T) {
	needRoot(t)
	for _, backups := range []bool{false, true} {
		for name, ruin := range ruins {
			t.Run(fmt.Sprint(name, ", backups ", backups), func(t *testing.T) {
				cfg := testConfig(t)
				s, err := Open(cfg, quietNeeds(t))
				must(t, err)
				sn := in(t, s, one)
				old := chainOf(t, sn, "old", 2)
				prepare(t, sn, "gone", "")
				if backups {
					must(t, s.keeper.Save(t.Context()))
				}
				must(t, sn.Remove(t.Context(), "gone"))
				must(t, s.empty(t.Context()))
				later := chainOf(t, sn, "later", 2)
				_, err = sn.Update(t.Context(), snapshot.Info{Name: "later1", Labels: map[string]string{"a": "b"}})
				must(t, err)
				write(t, prepare(t, sn, "written-key", "later1"), "text")
				commitTo(t, sn, "written", "written-key", "")
				usage, err := sn.Usage(t.Context(), "written")
				must(t, err)
				must(t, s.Close())
				ruin(t, filepath.Join(cfg.Root, "db"))

				s = openTest(t, cfg, quietNeeds(t))
				sn = in(t, s, one)
				var names []string
				for i, err := range sn.List(t.Context()) {
					must(t, err)
					names = append(names, i.Name)
				}
				want := slices.Concat(old, later, []string{"written"})
				slices.Sort(want)
				if !slices.Equal(names, want) {
					t.Errorf("there are %q, want %q", names, want)
				}
				i, err := sn.Stat(t.Context(), "later1")
				if err != nil || i.Parent != "later0" || i.Labels["a"] != "b" || i.Labels[gc.LabelRoot] == "" || i.Kind != snapshot.Committed {
					t.Errorf("later1 is %+v, %v", i, err)
				}
				if now, err := sn.Usage(t.Context(), "written"); now != usage || err != nil {
					t.Errorf("usage is %+v, %v, want %+v", now, err, usage)
				}
				if s.keeper.Incomplete() {
					t.Error("it is not settled")
				}
				// No id is handed out again.
				prepare(t, sn, "next", "written")
				n := collectAll(t, s, &gctest.Coordinator{})
				if want := map[bool]int{false: 1, true: 1 + len(old)}[backups]; n != want {
					t.Errorf("removed %d, want %d", n, want)
				}
			})
		}
	}
}

// TestWhatNobodyKnowsIsNoTrash: not when the records were lost. A commit that was
// interrupted is none.
func TestWhatNobodyKnowsIsNoTrash(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	s, err := Open(cfg, quietNeeds(t))
	must(t, err)
	sn := in(t, s, one)
	chainOf(t, sn, "x", 1) // 1 and 2
	prepare(t, sn, "half", "")
	must(t, s.tell(note{owner: sn.owner("never"), record: record{ID: 3, Kind: snapshot.Committed}}))
	prepare(t, sn, "cut", "")
	must(t, s.Close())
	notes := filepath.Join(cfg.Root, Overlayfs, notesDir)
	must(t, os.WriteFile(filepath.Join(notes, "4"), make([]byte, 100), 0o600))
	must(t, os.WriteFile(filepath.Join(notes, "99"), []byte("x"), 0o600))
	must(t, os.RemoveAll(filepath.Join(cfg.Root, "db")))
	for range 2 {
		s = openTest(t, cfg, quietNeeds(t))
		sn = in(t, s, one)
		if i, err := sn.Stat(t.Context(), "half"); err != nil || i.Kind != snapshot.Active {
			t.Errorf("half is %+v, %v", i, err)
		}
		if _, err := sn.Stat(t.Context(), "never"); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("never: %v", err)
		}
		must(t, s.empty(t.Context()))
		if got := dirs(t, s); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
			t.Errorf("trees %q", got)
		}
		must(t, s.Close())
	}
}

// TestRestoreKeepsWhatCameSince, and forgets what is gone.
func TestRestoreKeepsWhatCameSince(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	chainOf(t, sn, "old", 2)
	prepare(t, sn, "gone", "")
	prepare(t, sn, "becomes", "")
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	must(t, sn.Remove(t.Context(), "gone"))
	must(t, s.empty(t.Context()))
	commitTo(t, sn, "became", "becomes", "")
	chainOf(t, sn, "new", 1)
	report, err := s.Restore(t.Context(), &b)
	must(t, err)
	want := []backup.Change{
		{What: "snapshots got the record that their note tells of", Count: 3},
		{What: "records were removed whose tree is not there", Count: 1},
	}
	if !slices.Equal(report.Changes, want) {
		t.Errorf("changes %+v, want %+v", report.Changes, want)
	}
	for name, kind := range map[string]snapshot.Kind{
		"old1": snapshot.Committed, "oldactive": snapshot.Active, "became": snapshot.Committed,
		"new0": snapshot.Committed, "newactive": snapshot.Active, "gone": "", "becomes": "",
	} {
		if i, _ := sn.Stat(t.Context(), name); i.Kind != kind {
			t.Errorf("%s is %q, want %q", name, i.Kind, kind)
		}
	}
}

// TestIdsAreNotUsedAgain after a restore of records that are older, and the end of
// the process that knew better.
func TestIdsAreNotUsedAgain(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, quietNeeds(t))
	must(t, err)
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	sn := in(t, s, one)
	for range 3 {
		prepare(t, sn, "key", "")
		must(t, sn.Remove(t.Context(), "key"))
	}
	must(t, s.empty(t.Context()))
	_, err = s.Restore(t.Context(), &b)
	must(t, err)
	last := s.last.Load()
	must(t, s.Close())
	s = openTest(t, cfg, quietNeeds(t))
	if got := s.last.Load(); got < last || last < 3 {
		t.Errorf("the last id is %d, and was %d", got, last)
	}
}
