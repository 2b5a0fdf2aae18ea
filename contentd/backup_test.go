package contentd

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/backup/backuptest"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/namespace"
)

// TestBackup keeps names and values as labels of two blobs.
func TestBackup(t *testing.T) {
	backuptest.Run(t, func(t *testing.T) backuptest.Subject {
		s := openStore(t, testConfig(t), nil)
		return backuptest.Subject{
			Keeper: s,
			Set: func(t *testing.T, name, value string) {
				put(t, s, one, []byte(name))
				_, err := s.In(one).Update(t.Context(), content.Info{
					Digest: digest.FromString(name), Labels: map[string]string{"value": value},
				})
				must(t, err)
			},
			Get: func(t *testing.T, name string) string {
				info, err := s.In(one).Info(t.Context(), digest.FromString(name))
				if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
					t.Fatal(err)
				}
				return info.Labels["value"]
			},
		}
	})
}

func TestRestoreKeepsTheBlobsOfSince(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	old := put(t, s, one, []byte("before the backup"))
	deleted := put(t, s, one, []byte("deleted after the backup"))
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	remove(t, s, one, deleted)
	s.sweep(t.Context())
	put(t, s, two, []byte("after the backup"))
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	must(t, err)
	defer w.Close()
	_, err = w.Write(body)
	must(t, err)

	r, err := s.Restore(t.Context(), &b)
	must(t, err)
	t.Logf("%+v", r)
	for scope, text := range map[namespace.Scope]string{one: "before the backup", two: "after the backup"} {
		got, err := content.ReadAll(t.Context(), s.In(scope), digest.FromString(text), 1<<20)
		if err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	wantAbsent(t, s, one, deleted)
	if _, err := s.In(one).Info(t.Context(), old); err != nil {
		t.Errorf("Info: %v", err)
	}
	if names, err := s.keeper.Backups(); err != nil || len(names) != 1 {
		t.Errorf("what was there is in %v, %v", names, err)
	}
	must(t, w.Close())
	put(t, s, one, body)
	if all := findings(t, s, fsck.Options{Deep: true}); len(all) > 0 {
		t.Errorf("afterwards: %+v", all)
	}
}

func TestBackupsAreMadeWhenSomethingChanged(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	want := func(n int) []string {
		t.Helper()
		names, err := s.keeper.Backups()
		if err != nil || len(names) != n {
			t.Fatalf("%d backups are wanted: %v, %v", n, names, err)
		}
		return names
	}
	for i, n := range []int{1, 2, 2} {
		put(t, s, one, []byte{byte(i)})
		for range 2 {
			must(t, s.keeper.Save(t.Context()))
		}
		want(n)
	}
	first := want(2)[0]
	put(t, s, one, body)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, "KeepBackups", s.KeepBackups(ctx), context.Canceled)
	if last := want(2); last[1] != first {
		t.Errorf("at the end no backup was made: %v", last)
	}
}

// TestRestoreWhileWritersWrite: what was acknowledged before the restore and
// after it is there, and nothing else happens to a writer but that its ingest is
// gone.
func TestRestoreWhileWritersWrite(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	put(t, s, one, body)
	var b bytes.Buffer
	must(t, s.Backup(t.Context(), &b))
	c := startCrowd(t, s)
	defer c.wg.Wait()
	defer c.stop()
	for range 3 {
		before, _, _ := c.counts()
		eventually(t, "blobs are written", func() bool { n, _, _ := c.counts(); return n > before+10 })
		if _, err := s.Restore(t.Context(), bytes.NewReader(b.Bytes())); err != nil {
			t.Errorf("Restore: %v", err)
		}
	}
	c.stop()
	c.wg.Wait()
	if n, _, err := c.counts(); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after %d blobs: %v", n, err)
	}
	c.check(t, s)
	for _, f := range findings(t, s, fsck.Options{Deep: true}) {
		if f.Severity == fsck.Loss {
			t.Errorf("%+v", f)
		}
	}
}

// TestRestoreThatFailsLeavesARebuildToBeDone: what has no record before it is
// done would be trash at the next start.
func TestRestoreThatFailsLeavesARebuildToBeDone(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	put(t, s, one, body)
	restore := func(due bool) {
		t.Helper()
		_, err := s.Restore(t.Context(), strings.NewReader("no backup"))
		wantKind(t, "Restore", err, errdefs.ErrDataLoss)
		if s.keeper.Incomplete() != due {
			t.Errorf("afterwards the rebuild is due: %v", !due)
		}
	}
	restore(false)
	must(t, s.keeper.Doubt())
	restore(true)
}
