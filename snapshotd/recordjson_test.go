package snapshotd

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/snapshot"
)

// aRecord has something in each field that List has to read.
var aRecord = record{
	ID: 4711, Kind: snapshot.Committed, Parent: "sha256:00", Labels: map[string]string{"containerd.io/gc.root": "x", "e": "é"},
	Created: time.Date(2026, 11, 21, 12, 30, 15, 123456789, time.UTC), Updated: time.Date(2026, 11, 21, 12, 30, 15, 0, time.UTC),
	Inodes: 9000, Size: 1 << 40, Key: "one/2/x",
}

// FuzzRecordJSON has any bytes read as package json reads them.
func FuzzRecordJSON(f *testing.F) {
	for _, r := range []record{{}, aRecord, {ID: 1<<64 - 1, Kind: "\"", Labels: map[string]string{"": "<\x00"}}} {
		p, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	for _, s := range []string{``, `{}`, `null`, `{"id":-1}`, `{"id":1,"kind":"view","created":"x"}`, `{"id":1,"kind":"view","labels":{}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		type plain record
		var want plain
		wantErr := json.Unmarshal(p, &want)
		var got record
		err := got.UnmarshalJSON(p)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got %v, want %v", p, err, wantErr)
		}
		if err == nil && !reflect.DeepEqual(got, record(want)) {
			t.Errorf("%q: got %+v, want %+v", p, got, want)
		}
	})
}

func TestRecordsAreReadTheShortWay(t *testing.T) {
	p, err := json.Marshal(aRecord)
	if err != nil {
		t.Fatal(err)
	}
	var got record
	if n := testing.AllocsPerRun(100, func() { err = got.UnmarshalJSON(p) }); n > 16 {
		t.Errorf("reading %s takes %.0f allocations, as if package json had done it", p, n)
	}
	if err != nil || !reflect.DeepEqual(got, aRecord) {
		t.Errorf("got %+v, %v", got, err)
	}
}
