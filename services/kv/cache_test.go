package kv

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
)

func openCached(t *testing.T, max int) *DB {
	t.Helper()
	db, err := Open(Options{Dir: t.TempDir(), Owner: "test", Schema: 1, CacheMax: max})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestGetJSONSeesWhatWasWritten(t *testing.T) {
	db := openCached(t, 1<<20)
	put := func(key string, value int) {
		t.Helper()
		if err := db.Update(t.Context(), func(tx *Tx) error { return tx.PutJSON([]byte(key), value) }); err != nil {
			t.Fatal(err)
		}
	}
	want := func(key string, want int) {
		t.Helper()
		for range 3 {
			var got int
			if err := db.GetJSON([]byte(key), &got); err != nil || got != want {
				t.Errorf("GetJSON(%s): got %d, %v, want %d", key, got, err, want)
			}
		}
	}
	put("a", 1)
	put("b", 2)
	want("a", 1)
	want("b", 2)
	put("a", 3)
	want("a", 3)
	want("b", 2)
	if err := db.Release(t.Context(), func(tx *Tx) error { return tx.Delete([]byte("a")) }); err != nil {
		t.Fatal(err)
	}
	var v int
	if err := db.GetJSON([]byte("a"), &v); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("GetJSON of what is deleted: %v", err)
	}
	var s string
	if err := db.GetJSON([]byte("b"), &s); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("GetJSON of a number into a string: %v", err)
	}
	if err := db.GetJSON(ownerKey, &s); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("GetJSON of the owner's row: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.GetJSON([]byte("b"), &v); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("GetJSON of a closed database: %v", err)
	}
}

func TestCacheStaysBelowItsLimit(t *testing.T) {
	const most = 4 << 10
	db := openCached(t, most)
	if err := db.Update(t.Context(), func(tx *Tx) error {
		for i := range 500 {
			if err := tx.PutJSON(fmt.Appendf(nil, "key %d", i), i); err != nil {
				return err
			}
		}
		return tx.PutJSON([]byte("long"), make([]byte, most))
	}); err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		var got int
		if err := db.GetJSON(fmt.Appendf(nil, "key %d", i), &got); err != nil || got != i {
			t.Fatalf("key %d: got %d, %v", i, got, err)
		}
		if db.cache.size > most {
			t.Fatalf("the cache has %d bytes, more than %d", db.cache.size, most)
		}
	}
	var long []byte
	if err := db.GetJSON([]byte("long"), &long); err != nil || len(long) != most {
		t.Fatalf("a long one: %d bytes, %v", len(long), err)
	}
	size := 0
	for key, value := range db.cache.values {
		size += costOf(key, value)
	}
	if size != db.cache.size || len(db.cache.values) < 10 {
		t.Errorf("%d entries of %d bytes, and the cache says %d", len(db.cache.values), size, db.cache.size)
	}
}

// TestCacheIsNeverBehind has one key counted up while many read it: who reads
// after a commit was acknowledged, or after another has read, sees no less.
func TestCacheIsNeverBehind(t *testing.T) {
	db := openCached(t, 1<<20)
	key := []byte("counter")
	var acked atomic.Int64
	put := func(n int64) {
		if err := db.Update(t.Context(), func(tx *Tx) error { return tx.PutJSON(key, n) }); err != nil {
			t.Error(err)
		}
		acked.Store(n)
	}
	put(1)
	var seen atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				least := max(acked.Load(), seen.Load())
				var got int64
				if err := db.GetJSON(key, &got); err != nil || got < least {
					t.Errorf("got %d, %v after %d was seen", got, err, least)
					return
				}
				for old := seen.Load(); got > old && !seen.CompareAndSwap(old, got); old = seen.Load() {
				}
			}
		})
	}
	for n := range int64(300) {
		put(n + 2)
	}
	stop.Store(true)
	wg.Wait()
}
