package contentd

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// longRef is as long as a ref may be, and each of its bytes is two in a key.
func longRef(i int) string { return fmt.Sprintf("%04d", i) + strings.Repeat("\x01", 4092) }

// TestManyRecordsAreMadeAgain: more than fit into a transaction, by their number
// and by their length.
func TestManyRecordsAreMadeAgain(t *testing.T) {
	const namespaces = 40
	cfg := quickConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	var all []digest.Digest
	for i := range rebuildBatch {
		d := put(t, s, one, fmt.Append(nil, "blob ", i))
		for n := range namespaces {
			s.annotate(s.path(d), fmt.Sprint("namespace-", n), time.Now(), nil)
		}
		all = append(all, d)
	}
	want := len(notesOf(s.path(all[0])))
	for i := range rebuildBatch {
		leaveIngest(t, s, one, longRef(i), body)
	}
	must(t, s.keeper.Save(t.Context()))
	closeStore(t, s)
	must(t, os.RemoveAll(options(cfg, nil).Dir))

	s = openStore(t, cfg, nil)
	holders := 0
	must(t, s.db.View(func(tx *kv.Tx) error {
		for _, d := range all {
			holders += len(holdersOf(tx, d))
		}
		return nil
	}))
	if holders != want*len(all) {
		t.Errorf("%d blobs of %d namespaces each have %d records", len(all), want, holders)
	}
	if st, err := s.In(one).ListStatuses(t.Context()); err != nil || len(st) != rebuildBatch {
		t.Errorf("%d ingests, %v", len(st), err)
	}
}

// TestMembersWithLongNamesAreDropped: more of them than fit into a transaction.
func TestMembersWithLongNamesAreDropped(t *testing.T) {
	s := openStore(t, quickConfig(t), nil)
	l := lease.Ref{ID: "l", Generation: 1}
	for i := range 70 {
		must(t, s.AddMember(t.Context(), "one", l, ingestOf(longRef(i))))
	}
	must(t, s.DropMembers(t.Context(), "one", l))
	if left, err := s.ListMembers(t.Context(), "one", l); err != nil || len(left) > 0 {
		t.Errorf("%d are left, %v", len(left), err)
	}
}
