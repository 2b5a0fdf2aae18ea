package snapshotd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// loseLastLine has a power failure take what was appended to a note last.
func loseLastLine(t *testing.T, s *Store, id uint64) {
	t.Helper()
	path := s.notePath(Overlayfs, id)
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.Truncate(path, int64(bytes.LastIndexByte(bytes.TrimSpace(b), '\n'))))
}

// TestWhatIsCommittedStaysSo where its note says that it is active: when the
// records are completed, and when they are lost after another start.
func TestWhatIsCommittedStaysSo(t *testing.T) {
	needRoot(t)
	for name, lose := range map[string]func(t *testing.T, cfg Config){
		"records may be missing": func(t *testing.T, cfg Config) {
			must(t, os.WriteFile(filepath.Join(cfg.Root, "rebuild"), nil, 0o600))
		},
		"records are lost later": func(t *testing.T, cfg Config) {
			openOnce(t, cfg)
			must(t, os.RemoveAll(filepath.Join(cfg.Root, "db")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s, err := Open(cfg, quietNeeds(t))
			must(t, err)
			sn := in(t, s, one)
			prepare(t, sn, "key", "")
			commitTo(t, sn, "name", "key", "")
			prepare(t, sn, "child", "name")
			loseLastLine(t, s, 1)
			must(t, s.Close())
			lose(t, cfg)
			sn = in(t, openTest(t, cfg, quietNeeds(t)), one)
			var got []string
			for i, err := range sn.List(t.Context()) {
				must(t, err)
				got = append(got, i.Name+" "+string(i.Kind)+" "+i.Parent)
			}
			if want := []string{"child active name", "name committed "}; !slices.Equal(got, want) {
				t.Errorf("there are %q, want %q", got, want)
			}
		})
	}
}

// TestANoteIsAsLongAsItHasToBe, however often labels change.
func TestANoteIsAsLongAsItHasToBe(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	s, err := Open(cfg, quietNeeds(t))
	must(t, err)
	sn := in(t, s, one)
	prepare(t, sn, "key", "")
	commitTo(t, sn, "name", "key", "")
	label := ""
	for i := range 40 {
		label = strings.Repeat(string(rune('a'+i%26)), 4000)
		_, err := sn.Update(t.Context(), snapshot.Info{Name: "name", Labels: map[string]string{"l": label}})
		must(t, err)
	}
	if fi, err := os.Stat(s.notePath(Overlayfs, 1)); err != nil || fi.Size() > noteFull+8000 {
		t.Errorf("the note has %d bytes, %v, want %d", fi.Size(), err, noteFull)
	}
	must(t, s.Close())
	must(t, os.RemoveAll(filepath.Join(cfg.Root, "db")))
	i, err := in(t, openTest(t, cfg, quietNeeds(t)), one).Stat(t.Context(), "name")
	if err != nil || i.Kind != snapshot.Committed || i.Labels["l"] != label {
		t.Errorf("made again is %.100v, %v", i, err)
	}
}

// TestNothingIsRemovedBesideARestore that the backup has as a snapshot.
func TestNothingIsRemovedBesideARestore(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	prepare(t, sn, "key", "")
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	must(t, sn.Remove(t.Context(), "key"))
	trash, err := s.trashed() // as the collector has read it
	must(t, err)
	giveBack, err := s.trashTurn(t.Context())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Restore(ctx, &b); !errors.Is(err, context.Canceled) {
		t.Errorf("Restore beside a removal = %v, want %v", err, context.Canceled)
	}
	giveBack()
	_, err = s.Restore(t.Context(), &b)
	must(t, err)
	for _, gone := range trash {
		must(t, s.discard(t.Context(), gone))
	}
	if i, err := sn.Stat(t.Context(), "key"); err != nil || i.Kind != snapshot.Active || !s.drivers[Overlayfs].Has(t.Context(), driver.Snapshot{Ref: driver.Ref{ID: 1}, Kind: snapshot.Active}) {
		t.Errorf("the snapshot of the backup is %+v, %v, and its tree %q", i, err, dirs(t, s))
	}
}

// TestARestoreKeepsWhatSomebodyWorksOn, such as a layer that is extracted into it.
func TestARestoreKeepsWhatSomebodyWorksOn(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	prepare(t, sn, "key", "")
	release, err := s.hold(t.Context(), 1)
	must(t, err)
	_, err = s.Restore(t.Context(), &b)
	release()
	must(t, err)
	if i, err := sn.Stat(t.Context(), "key"); err != nil || i.Kind != snapshot.Active {
		t.Errorf("the snapshot is %+v, %v", i, err)
	}
}

// TestARowThatLiesKeepsNobody from starting, and its tree is no trash.
func TestARowThatLiesKeepsNobody(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t)
	s, err := Open(cfg, quietNeeds(t))
	must(t, err)
	sn := in(t, s, one)
	prepare(t, sn, "key", "") // 1
	must(t, errors.Join(os.Mkdir(s.path(2), 0o700), os.Mkdir(s.path(3), 0o700)))
	must(t, s.kv.Update(t.Context(), func(tx *kv.Tx) error {
		return errors.Join(tx.PutJSON(dirKey(2), sn.owner("nobody")), tx.PutJSON(dirKey(3), sn.owner("key")))
	}))
	must(t, s.Close())
	s = openTest(t, cfg, quietNeeds(t))
	must(t, s.empty(t.Context()))
	findings(t, s, fsck.Options{Repair: true})
	must(t, s.empty(t.Context()))
	got := findings(t, s, fsck.Options{})
	if _, ok := got["unclaimed overlayfs/2"]; !ok || len(got) != 2 {
		t.Errorf("after the repair is found %+v, want two trees that nobody claims", got)
	}
	if got := dirs(t, s); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("trees %q", got)
	}
}

// A hasty driver lists a tree once more that is removed at that moment.
type hasty struct {
	driver.Driver
	listed *bool
}

func (d hasty) IDs(ctx context.Context) ([]uint64, error) {
	ids, err := d.Driver.IDs(ctx)
	if !*d.listed {
		ids = append(ids, 1)
	}
	*d.listed = true
	return ids, err
}

// TestWhatIsRemovedMeanwhileIsNoOrphan in what a check finds.
func TestWhatIsRemovedMeanwhileIsNoOrphan(t *testing.T) {
	s := openTest(t, testConfig(t), quietNeeds(t))
	sn := in(t, s, one)
	prepare(t, sn, "key", "")
	must(t, sn.Remove(t.Context(), "key"))
	must(t, s.empty(t.Context()))
	s.drivers[Overlayfs] = hasty{s.drivers[Overlayfs], new(bool)}
	if got := findings(t, s, fsck.Options{}); len(got) > 0 {
		t.Errorf("found %+v", got)
	}
}
