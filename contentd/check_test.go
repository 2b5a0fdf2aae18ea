package contentd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/fsck/fsckrpc"
	"github.com/gantryd/gantry/services/fsck/fscktest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

func checkSubject(t *testing.T) fscktest.Subject {
	s := openStore(t, testConfig(t), nil)
	return fscktest.Subject{
		Checker: s,
		Add:     func(t *testing.T, b string) string { return put(t, s, one, []byte(b)).String() },
		Corrupt: func(t *testing.T, id string) { corrupt(t, s, digest.Digest(id)) },
		Present: func(t *testing.T, id string) bool {
			_, err := s.In(one).Info(t.Context(), digest.Digest(id))
			return err == nil
		},
	}
}

func TestCheck(t *testing.T) { fscktest.Run(t, checkSubject) }

func TestCheckAcrossTheWire(t *testing.T) {
	fscktest.Run(t, func(t *testing.T) fscktest.Subject {
		s := checkSubject(t)
		inner := s.Checker
		s.Checker = fsckrpc.NewClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { fsckrpc.Register(r, inner) }))
		return s
	})
}

// corrupt changes a byte of a blob, and not how many there are.
func corrupt(t *testing.T, s *Store, d digest.Digest) {
	t.Helper()
	b, err := os.ReadFile(s.path(d))
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.Chmod(s.path(d), 0o600))
	must(t, os.WriteFile(s.path(d), b, 0o600))
}

// findings runs a check to its end.
func findings(t *testing.T, s *Store, o fsck.Options) []fsck.Finding {
	t.Helper()
	var all []fsck.Finding
	for item, err := range s.Check(t.Context(), o) {
		must(t, err)
		if item.Finding != nil {
			all = append(all, *item.Finding)
		}
	}
	return all
}

func TestCorruptBlobIsQuarantinedForEverybodyAndHealed(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	d := put(t, s, one, body)
	put(t, s, two, body)
	manifest := []byte("a manifest")
	put(t, s, one, manifest)
	_, err = s.In(one).Update(t.Context(), content.Info{
		Digest: digest.FromBytes(manifest), Labels: map[string]string{refLabel + ".l.0": d.String()},
	})
	must(t, err)
	index := put(t, s, one, []byte("an index"))
	_, err = s.In(one).Update(t.Context(), content.Info{
		Digest: index, Labels: map[string]string{refLabel + ".m.0": digest.FromBytes(manifest).String()},
	})
	must(t, err)
	must(t, s.AddMember(t.Context(), "two", lease.Ref{ID: "l", Generation: 3}, contentOf(d)))
	corrupt(t, s, d)

	all := findings(t, s, fsck.Options{Deep: true, Repair: true})
	if len(all) != 1 || all[0].ID != d.String() || all[0].Done == "" {
		t.Fatalf("found %+v", all)
	}
	for _, want := range []fsck.Ref{
		{Namespace: "one", Kind: "record", ID: d.String()},
		{Namespace: "two", Kind: "record", ID: d.String()},
		{Namespace: "two", Kind: "lease", ID: "l"},
		{Namespace: "one", Kind: "label", ID: digest.FromBytes(manifest).String()},
		{Namespace: "one", Kind: "label", ID: index.String()},
	} {
		if !strings.Contains(strings.Join(refTexts(all[0].Refs), "\n"), strings.Join(refTexts([]fsck.Ref{want}), "")) {
			t.Errorf("of those who refer to it %+v is missing: %+v", want, all[0].Refs)
		}
	}
	names, err := os.ReadDir(s.quarantined())
	must(t, err)
	if len(names) != 1 || !strings.Contains(names[0].Name(), d.Encoded()) {
		t.Errorf("in quarantine: %v", names)
	}
	wantAbsent(t, s, one, d)
	wantAbsent(t, s, two, d)
	closeStore(t, s)
	s = openStore(t, cfg, nil)
	wantAbsent(t, s, one, d)
	put(t, s, two, body)
	for _, scope := range []struct{ in content.Store }{{s.In(one)}, {s.In(two)}} {
		if b, err := content.ReadAll(t.Context(), scope.in, d, 1<<20); err != nil || !bytes.Equal(b, body) {
			t.Errorf("ReadAll: %d bytes, %v", len(b), err)
		}
	}
	if all := findings(t, s, fsck.Options{Deep: true}); len(all) > 0 {
		t.Errorf("after it was written again: %+v", all)
	}
	u, err := s.Usage(t.Context())
	must(t, err)
	if u.Quarantine.Count != 1 || u.Quarantine.Bytes != int64(len(body)) || len(u.Namespaces) != 2 || u.Namespaces[0].Shared != int64(len(body)) || u.Blobs.Count != 3 {
		t.Errorf("Usage: %+v", u)
	}
}

func refTexts(refs []fsck.Ref) []string {
	var all []string
	for _, r := range refs {
		all = append(all, r.Namespace+" "+r.Kind+" "+r.ID)
	}
	return all
}

// TestRecordsThatDisagreeAreMended harms rows one at a time: a check finds each,
// a repair mends it, and the next finds nothing.
func TestRecordsThatDisagreeAreMended(t *testing.T) {
	d, other := digest.FromBytes(body), digest.FromBytes([]byte("another"))
	m := membership{ns: "one", lease: lease.Ref{ID: "l", Generation: 1}, of: contentOf(d)}
	for name, harm := range map[string]func(s *Store, tx *kv.Tx) error{
		"blob without have":       func(_ *Store, tx *kv.Tx) error { return tx.Delete(haveKey(d, "one")) },
		"have with another size":  func(_ *Store, tx *kv.Tx) error { return tx.PutJSON(haveKey(d, "one"), 7) },
		"have that is damaged":    func(_ *Store, tx *kv.Tx) error { return tx.Put(haveKey(d, "one"), []byte("{")) },
		"have without blob":       func(_ *Store, tx *kv.Tx) error { return tx.PutJSON(haveKey(d, "two"), len(body)) },
		"blob that is damaged":    func(_ *Store, tx *kv.Tx) error { return tx.Put(blobKey("one", d), []byte("{")) },
		"blob of no digest":       func(_ *Store, tx *kv.Tx) error { return tx.PutJSON(blobKey("one", "../x"), blob{}) },
		"trash that somebody has": func(s *Store, tx *kv.Tx) error { return tx.PutJSON(trashKey(d), trash{Since: s.now()}) },
		"trash that is damaged":   func(_ *Store, tx *kv.Tx) error { return tx.Put(trashKey(other), []byte("{")) },
		"ingest that is damaged":  func(_ *Store, tx *kv.Tx) error { return tx.Put(ingestKey("one", "r"), []byte("{")) },
		"half a membership":       func(_ *Store, tx *kv.Tx) error { return tx.Put(m.keys()[0], nil) },
		"the other half":          func(_ *Store, tx *kv.Tx) error { return tx.Put(m.keys()[1], nil) },
		"membership of a lease that cannot be": func(_ *Store, tx *kv.Tx) error {
			return tx.Put(kv.Key("member", "one", lease.TypeContent, d.String(), "l", "x"), nil)
		},
		"file without a record": func(s *Store, _ *kv.Tx) error {
			return os.WriteFile(s.path(other), []byte("another"), 0o444)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, testConfig(t), nil)
			put(t, s, one, body)
			must(t, s.db.Update(t.Context(), func(tx *kv.Tx) error { return harm(s, tx) }))
			for _, repair := range []bool{false, true} {
				if all := findings(t, s, fsck.Options{Repair: repair}); len(all) == 0 {
					t.Fatalf("repair %t: nothing was found", repair)
				} else if (all[0].Done != "") != repair {
					t.Errorf("repair %t: %+v", repair, all)
				}
			}
			if all := findings(t, s, fsck.Options{Deep: true}); len(all) > 0 {
				t.Errorf("after the repair: %+v", all)
			}
			if b, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil || !bytes.Equal(b, body) {
				t.Errorf("ReadAll: %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestCheckFindsWhatWritersLeft(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	leaveIngest(t, s, one, "r", body)
	name := filepath.Join(s.ingests(), newFile())
	must(t, os.WriteFile(name, body, 0o600))
	if all := findings(t, s, fsck.Options{Repair: true}); len(all) > 0 {
		t.Errorf("what may be a writer's was found: %+v", all)
	}
	old := s.now().Add(-2 * s.cfg.ingestAge())
	must(t, os.Chtimes(name, old, old))
	if all := findings(t, s, fsck.Options{Repair: true}); len(all) != 1 || all[0].Done == "" {
		t.Errorf("found %+v", all)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := s.In(one).Status(t.Context(), "r"); err != nil {
		t.Errorf("Status: %v", err)
	}
}

func TestCheckKeepsToItsRateAndSaysThatItGoesOn(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	put(t, s, one, bytes.Repeat([]byte("x"), 3*hashPart))
	items := 0
	began := s.now()
	for item, err := range s.Check(t.Context(), fsck.Options{Deep: true, Rate: hashPart / 2}) {
		must(t, err)
		if items++; item.Progress.Bytes > 3*hashPart {
			t.Errorf("progress: %+v", item.Progress)
		}
		if items == 3 {
			break
		}
	}
	// Nothing is read faster than that, however slow the machine is.
	if took := s.now().Sub(began); items < 3 || took.Seconds() < 1 {
		t.Errorf("%d items in %s", items, took)
	}
}

func TestCheckOfOneThatIsNotThere(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	for _, err := range s.Check(t.Context(), fsck.Options{Only: []string{bodyD.String()}}) {
		wantKind(t, "Check", err, errdefs.ErrNotFound)
	}
}

// openDamaged opens a store one of whose tables is damaged afterwards, with some
// blobs.
func openDamaged(t *testing.T, cfg Config) (*Store, []digest.Digest) {
	t.Helper()
	s, err := Open(cfg, Needs{})
	must(t, err)
	var all []digest.Digest
	for i := range 200 {
		all = append(all, put(t, s, one, fmt.Append(nil, "blob ", i)))
	}
	closeStore(t, s) // which makes a table
	s, err = Open(cfg, Needs{})
	must(t, err)
	tables, err := filepath.Glob(filepath.Join(cfg.Root, "db", "*.sst"))
	must(t, err)
	for _, name := range tables {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(make([]byte, 4096), 8192)
		must(t, errors.Join(err, f.Close()))
	}
	return s, all
}

// TestCheckMendsNothingByADamagedDatabase: of a table that is damaged while it is
// used the database says that its rows are not there. What they are of is no
// trash: after a restart they are made again.
func TestCheckMendsNothingByADamagedDatabase(t *testing.T) {
	cfg := testConfig(t)
	s, all := openDamaged(t, cfg)
	for _, only := range [][]string{nil, {all[0].String(), all[100].String(), all[199].String()}} {
		damaged := false
		for item, err := range s.Check(t.Context(), fsck.Options{Repair: true, Only: only}) {
			if err != nil && !errdefs.IsNotFound(err) {
				t.Fatalf("Check: %v", err)
			}
			if f := item.Finding; f != nil {
				damaged = damaged || f.What == "database"
				if f.Done != "" {
					t.Errorf("%+v", f)
				}
			}
		}
		if !damaged {
			t.Error("the damage was not found")
		}
	}
	s.sweep(t.Context())
	closeStore(t, s)
	s = openStore(t, cfg, nil)
	for i, d := range all {
		if _, err := content.ReadAll(t.Context(), s.In(one), d, 1<<20); err != nil {
			t.Errorf("blob %d: %v", i, err)
		}
	}
}

// TestNothingIsMarkedByADamagedDatabase: what the missing rows refer to would be
// garbage.
func TestNothingIsMarkedByADamagedDatabase(t *testing.T) {
	s, _ := openDamaged(t, testConfig(t))
	defer closeStore(t, s)
	must(t, s.Begin(t.Context(), 1))
	var last error
	for _, err := range s.Mark(t.Context(), 1) {
		last = err
	}
	wantKind(t, "Mark", last, errdefs.ErrDataLoss)
}
