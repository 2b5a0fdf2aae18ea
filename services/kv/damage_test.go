package kv_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

// harms are what a disk or a person does to a file.
var harms = []struct {
	name string
	harm func(r *rand.Rand, b []byte) []byte // nil removes it
}{
	{"missing", func(*rand.Rand, []byte) []byte { return nil }},
	{"empty", func(*rand.Rand, []byte) []byte { return []byte{} }},
	{"cut", func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(used(b))] }},
	{"cut a little", func(r *rand.Rand, b []byte) []byte { return b[:len(b)-1-r.IntN(min(len(b), 40))] }},
	{"zeroed", func(_ *rand.Rand, b []byte) []byte { return make([]byte, len(b)) }},
	{"a page zeroed", func(r *rand.Rand, b []byte) []byte {
		at := r.IntN(used(b)) &^ 511
		clear(b[at:min(at+4096, len(b))])
		return b
	}},
	{"a bit flipped", func(r *rand.Rand, b []byte) []byte {
		b[r.IntN(used(b))] ^= 1 << r.IntN(8)
		return b
	}},
	{"a bit flipped at the end", func(r *rand.Rand, b []byte) []byte {
		n := used(b)
		b[n-1-r.IntN(min(n, 64))] ^= 1 << r.IntN(8)
		return b
	}},
	{"garbage", func(r *rand.Rand, b []byte) []byte {
		at := r.IntN(used(b))
		for i := at; i < min(at+200, len(b)); i++ {
			b[i] = byte(r.Uint32())
		}
		return b
	}},
	{"longer", func(r *rand.Rand, b []byte) []byte { return append(b, b[:r.IntN(len(b))]...) }},
}

// used is how long a file is without the zeros at its end.
func used(b []byte) int { return max(len(bytes.TrimRight(b, "\x00")), 1) }

// image returns the files of a database that has tables, a log, and a value
// that has a file of its own; as a kill leaves them.
func image(t *testing.T) (files map[string][]byte, rows map[string]string) {
	t.Helper()
	o := options(t)
	db := open(t, o)
	rows = map[string]string{}
	set := func(k, v string) {
		put(t, db, k, v)
		rows[k] = v
	}
	for i := range 1500 {
		set(fmt.Sprint("k", i%1200), strings.Repeat(fmt.Sprint("value ", i, " "), 400))
	}
	set("large", strings.Repeat("large", 80_000))
	for i := range 30 {
		set(fmt.Sprint("late", i), fmt.Sprint("value ", i))
	}
	if err := db.Update(t.Context(), func(tx *kv.Tx) error { return tx.Delete([]byte("k7")) }); err != nil {
		t.Fatal(err)
	}
	delete(rows, "k7")
	set("last", "value")
	return readDir(t, o.Dir), rows
}

func readDir(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "ballast" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // compacted meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = b
	}
	return files
}

// TestDamageIsFoundOrHarmless harms every file of a database in many ways: it
// then opens with every row that was acknowledged, or is ErrDataLoss, and never
// ends the process.
func TestDamageIsFoundOrHarmless(t *testing.T) {
	files, rows := image(t)
	const seed = 7
	random := rand.New(rand.NewPCG(seed, 0))
	found, harmless := map[string]int{}, map[string]int{}
	tables := 0
	for name, content := range files {
		if filepath.Ext(name) == ".sst" {
			tables++
		}
		if len(content) == 0 || tables > 2 && filepath.Ext(name) == ".sst" {
			continue
		}
		for _, h := range harms {
			for range 2 {
				what := h.name + " " + filepath.Ext(name)
				if filepath.Ext(name) == "" {
					what = h.name + " " + name
				}
				changed := h.harm(random, bytes.Clone(content))
				if openHarmed(t, files, rows, name, changed, what) {
					found[what]++
				} else {
					harmless[what]++
				}
			}
		}
	}
	t.Logf("found: %v", found)
	t.Logf("harmless: %v", harmless)
}

// TestDamageInALogIsFoundWithoutAWitness: a loss of power may leave the witness
// behind. Only of the last transaction it cannot be told whether its commit
// returned.
func TestDamageInALogIsFoundWithoutAWitness(t *testing.T) {
	files, rows := image(t)
	delete(files, "witness")
	for name, content := range files {
		if filepath.Ext(name) != ".mem" || used(content) < 1000 {
			continue
		}
		random := rand.New(rand.NewPCG(3, 0))
		for range 10 {
			changed := bytes.Clone(content)
			changed[20+random.IntN(used(content)-1000)] ^= 1 << random.IntN(8)
			if !openHarmed(t, files, rows, name, changed, "a bit flipped, and no witness") {
				t.Errorf("%s: it was not found", name)
			}
		}
	}
	if openHarmed(t, files, rows, "witness", nil, "no witness") {
		t.Error("without a witness it does not open")
	}
}

// openHarmed opens a copy in which one file is another, and says whether that
// was found.
func openHarmed(t *testing.T, files map[string][]byte, rows map[string]string, name string, changed []byte, what string) bool {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "harmed")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for n, b := range files {
		if n == name {
			if b = changed; b == nil {
				continue
			}
		}
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := kv.Open(kv.Options{Dir: dir, Owner: "contentd", Schema: 1})
	if err != nil {
		if !errors.Is(err, errdefs.ErrDataLoss) {
			t.Errorf("%s: %s: Open: %v", name, what, err)
		}
		return true
	}
	defer db.Close()
	if err := db.View(func(tx *kv.Tx) error {
		n := 0
		for k, v := range tx.Scan(nil, nil) {
			if n++; rows[string(k)] != string(v) {
				t.Errorf("%s: %s: row %q is another", name, what, k)
			}
		}
		if n != len(rows) {
			t.Errorf("%s: %s: %d rows of %d are there", name, what, n, len(rows))
		}
		return nil
	}); err != nil {
		t.Errorf("%s: %s: View: %v", name, what, err)
	}
	put(t, db, "more", "value")
	if err := db.Verify(t.Context()); err != nil {
		t.Errorf("%s: %s: Verify: %v", name, what, err)
	}
	return false
}
