package contentd

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 11, 21, 12, 30, 15, 123456789, time.UTC)

// FuzzBlobJSON has any bytes read as package json reads them.
func FuzzBlobJSON(f *testing.F) {
	for _, b := range []blob{
		{},
		{Size: 1, Created: at, Updated: at.Truncate(time.Second)},
		{Size: 1<<63 - 1, Created: at, Updated: at, Labels: map[string]string{"a": "b", "c/d": "", "": "é", "<": "\"\\\n\x00"}},
	} {
		p, err := json.Marshal(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	const times = `"created":"2026-11-21T12:30:15Z","updated":"2026-11-21T12:30:15+01:00"`
	for _, s := range []string{
		``, `{`, `{}`, `null`, `{"size":}`, `{"size":01,` + times + `}`, `{"size":-1,` + times + `}`, `{"size":1e3,` + times + `}`,
		`{"size":9223372036854775808,` + times + `}`, `{"size":1,` + times + `} `, `{"size":1,` + times + `,"labels":{}}`,
		`{"size":1,` + times + `,"labels":{"a":"1","a":"2"}}`, `{"size":1,` + times + `,"labels":{"a":"1",}}`,
		`{"size":1,` + times + `,"labels":{,"a":"1"}}`, `{"size":1,` + times + `,"labels":{"a":"` + "\xff\n" + `"}}`,
		`{"size":1,` + times + `,"labels":null}`, `{"size":1,` + times + `,"labels":{"a":"1"},"more":1}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		type plain blob
		var want plain
		wantErr := json.Unmarshal(p, &want)
		var got blob
		err := got.UnmarshalJSON(p)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got %v, want %v", p, err, wantErr)
		}
		if err == nil && !reflect.DeepEqual(got, blob(want)) {
			t.Errorf("%q: got %+v, want %+v", p, got, want)
		}
	})
}

func TestBlobJSONIsReadTheShortWay(t *testing.T) {
	b := blob{Size: 4096, Created: at, Updated: at, Labels: map[string]string{"containerd.io/gc.root": "x", "e": "é"}}
	p, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var got blob
	if n := testing.AllocsPerRun(100, func() { err = got.UnmarshalJSON(p) }); n > 12 {
		t.Errorf("reading %s takes %.0f allocations, as if package json had done it", p, n)
	}
	if err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func BenchmarkBlobJSON(b *testing.B) {
	p, err := json.Marshal(blob{Size: 4096, Created: at, Updated: at, Labels: map[string]string{"containerd.io/gc.root": strings.Repeat("x", 30)}})
	if err != nil {
		b.Fatal(err)
	}
	var got blob
	for b.Loop() {
		if err := got.UnmarshalJSON(p); err != nil {
			b.Fatal(err)
		}
	}
	type plain blob
	b.Run("plain", func(b *testing.B) {
		var got plain
		for b.Loop() {
			if err := json.Unmarshal(p, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}
