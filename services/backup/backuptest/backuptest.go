// Package backuptest holds the promises of package backup, as a test suite with
// a keeper in memory that keeps them.
package backuptest

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/backup"
)

// A Subject is a keeper, and how to change its records.
type Subject struct {
	backup.Keeper

	// Set makes the record of a name say something else.
	Set func(t *testing.T, name, value string)

	// Get is empty for a record that is not there.
	Get func(t *testing.T, name string) string
}

// Run tests the subject that open returns. It calls open once per promise, and
// expects nothing in it each time.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) { p.check(t, open(t)) })
	}
}

var promises = []struct {
	name  string
	check func(*testing.T, Subject)
}{
	{"what was backed up is there again, more than once", restored},
	{"a backup that is cut or changed anywhere is refused and changes nothing", refused},
	{"a restore that breaks off changes nothing", brokenOff},
	{"a writer that fails is the backup's error", badWriter},
}

func take(t *testing.T, s Subject) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Backup(t.Context(), &b); err != nil {
		t.Fatalf("Backup: %v", err)
	}
	return b.Bytes()
}

func want(t *testing.T, s Subject, name, value string) {
	t.Helper()
	if got := s.Get(t, name); got != value {
		t.Errorf("%s is %q, want %q", name, got, value)
	}
}

func restored(t *testing.T, s Subject) {
	empty := take(t, s)
	s.Set(t, "a", "1")
	s.Set(t, "b", "1")
	full := take(t, s)
	for range 2 {
		s.Set(t, "a", "2")
		r, err := s.Restore(t.Context(), iotest.OneByteReader(bytes.NewReader(full)))
		if err != nil || r.Records < 2 {
			t.Fatalf("Restore: %+v, %v", r, err)
		}
		want(t, s, "a", "1")
		want(t, s, "b", "1")
		s.Set(t, "b", "3")
		want(t, s, "b", "3")
	}
	if _, err := s.Restore(t.Context(), bytes.NewReader(empty)); err != nil {
		t.Fatalf("Restore of an empty one: %v", err)
	}
	s.Set(t, "a", "4")
	want(t, s, "a", "4")
}

func refused(t *testing.T, s Subject) {
	s.Set(t, "a", "1")
	s.Set(t, "b", "1")
	good := take(t, s)
	s.Set(t, "a", "2")
	step := max(len(good)/50, 1)
	for at := 0; at < len(good); at += step {
		changed := bytes.Clone(good)
		changed[at] ^= 0x10
		for name, bad := range map[string][]byte{"cut": good[:at], "changed": changed} {
			if _, err := s.Restore(t.Context(), bytes.NewReader(bad)); !errors.Is(err, errdefs.ErrDataLoss) {
				t.Fatalf("%s at byte %d of %d: Restore: %v", name, at, len(good), err)
			}
		}
	}
	longer := append(bytes.Clone(good), good...)
	if _, err := s.Restore(t.Context(), bytes.NewReader(longer)); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("two in one: Restore: %v", err)
	}
	want(t, s, "a", "2")
	want(t, s, "b", "1")
}

var errBroken = errors.New("broken off")

func brokenOff(t *testing.T, s Subject) {
	s.Set(t, "a", "1")
	good := take(t, s)
	s.Set(t, "a", "2")
	r := io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(errBroken))
	if _, err := s.Restore(t.Context(), r); err == nil {
		t.Error("Restore of half a stream: no error")
	}
	want(t, s, "a", "2")
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errBroken }

func badWriter(t *testing.T, s Subject) {
	s.Set(t, "a", "1")
	if err := s.Backup(t.Context(), failing{}); err == nil {
		t.Error("Backup to a writer that fails: no error")
	}
	want(t, s, "a", "1")
}
