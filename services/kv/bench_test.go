package kv_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/gantryd/gantry/services/kv"
)

// BenchmarkUpdate writes three small keys per transaction. With one caller it
// is the price of a sync; with many, group commit shares it.
func BenchmarkUpdate(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			db := open(b, options(b))
			value := make([]byte, 160)
			var n atomic.Int64
			b.ResetTimer()
			inParallel(b, callers, func() error {
				i := n.Add(1)
				return db.Update(b.Context(), func(tx *kv.Tx) error {
					for r := range 3 {
						if err := tx.Put(kv.Key("bench", fmt.Sprint(i%10_000), fmt.Sprint(r)), value); err != nil {
							return err
						}
					}
					return nil
				})
			})
		})
	}
}

func inParallel(b *testing.B, callers int, fn func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	failed := make(chan error, callers)
	for range callers {
		go func() {
			for left.Add(-1) >= 0 {
				if err := fn(); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range callers {
		if err := <-failed; err != nil {
			b.Error(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	db := open(b, options(b))
	if err := db.Update(b.Context(), func(tx *kv.Tx) error { return fill(tx, 900, 300) }); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := db.View(func(tx *kv.Tx) error {
			_, err := tx.Get(kv.Key("fill", "500"))
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScanOf50(b *testing.B) {
	db := open(b, options(b))
	if err := db.Update(b.Context(), func(tx *kv.Tx) error { return fill(tx, 900, 300) }); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := db.View(func(tx *kv.Tx) error {
			n := 0
			for range tx.Scan(kv.Key("fill", ""), nil) {
				if n++; n == 50 {
					break
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
}
