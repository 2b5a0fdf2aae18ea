package kv

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzBackup reads whatever an operator may hand over: a backup is whole, or
// refused for a reason that has a kind.
func FuzzBackup(f *testing.F) {
	o := Options{Dir: filepath.Join(f.TempDir(), "db"), Owner: "contentd", Schema: 1}
	db, err := Open(o)
	if err != nil {
		f.Fatal(err)
	}
	if err := db.Update(f.Context(), func(tx *Tx) error { return tx.Put([]byte("key"), []byte("value")) }); err != nil {
		f.Fatal(err)
	}
	var good bytes.Buffer
	if err := db.Backup(f.Context(), &good); err != nil {
		f.Fatal(err)
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:good.Len()/2])
	f.Add([]byte(backupMagic))
	f.Add([]byte(backupMagic + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte(backupMagic + "\x03key\xff\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := CheckBackup(o, bytes.NewReader(b))
		if err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("CheckBackup: %v", err)
		}
		if err == nil && info.Rows < 1 {
			t.Errorf("CheckBackup: %+v", info)
		}
	})
}

// FuzzTable reads what may be in the file of a table: nothing ends the process.
func FuzzTable(f *testing.F) {
	o := Options{Dir: filepath.Join(f.TempDir(), "db"), Owner: "contentd", Schema: 1}
	db, err := Open(o)
	if err != nil {
		f.Fatal(err)
	}
	if err := db.Update(f.Context(), func(tx *Tx) error { return tx.Put([]byte("key"), make([]byte, 9000)) }); err != nil {
		f.Fatal(err)
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(o.Dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		f.Fatal("there is no table", err)
	}
	for _, name := range tables {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if err := checkTable(b); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkTable(b); err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("checkTable: %v", err)
		}
	})
}

// FuzzLog reads what may be in a log.
func FuzzLog(f *testing.F) {
	o := Options{Dir: filepath.Join(f.TempDir(), "db"), Owner: "contentd", Schema: 1}
	db, err := Open(o)
	if err != nil {
		f.Fatal(err)
	}
	for _, key := range []string{"a", "b", "c"} {
		if err := db.Update(f.Context(), func(tx *Tx) error { return tx.Put([]byte(key), []byte("value")) }); err != nil {
			f.Fatal(err)
		}
	}
	logs, err := filepath.Glob(filepath.Join(o.Dir, "*.mem"))
	if err != nil || len(logs) == 0 {
		f.Fatal("there is no log", err)
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if err := checkLog(b); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimRight(b, "\x00"))
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte("\xff"), 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkLog(b); err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("checkLog: %v", err)
		}
	})
}
