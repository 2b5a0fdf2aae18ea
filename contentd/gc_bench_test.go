package contentd

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/gc/gctest"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// BenchmarkCycle is a cycle over 10,000 blobs, each in a lease, of which 100 are
// leased again meanwhile, and over 100 dead. Writers are held while it freezes
// and sweeps, and for as long as the coordinator colours.
func BenchmarkCycle(b *testing.B) {
	const count, changed, dead = 10_000, 100, 100
	s := openStore(b, testConfig(b), nil)
	l := lease.Ref{ID: "l", Generation: 1}
	name := func(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }
	write := func(from, to int, leased bool) {
		for i := from; i < to; i += 500 {
			if err := s.kv.Update(b.Context(), func(tx *kv.Tx) error {
				for k := i; k < min(i+500, to); k++ {
					if err := tx.PutJSON(blobKey("one", name(k)), blob{Size: 1}); err != nil {
						return err
					}
					if err := tx.PutJSON(haveKey(name(k), "one"), 1); err != nil {
						return err
					}
					if !leased {
						continue
					}
					if err := (membership{ns: "one", lease: l, of: contentOf(name(k))}).put(tx); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
		}
	}
	write(0, count, true)
	c := &gctest.Coordinator{
		Owners: []gc.Owner{s}, Now: gc.Now,
		Leases: func() map[string][]lease.Ref { return map[string][]lease.Ref{"one": {l}} },
	}
	ctx := b.Context()
	var marking, freezing, sweeping time.Duration
	for b.Loop() {
		b.StopTimer()
		write(count, count+dead, false)
		b.StartTimer()
		start := time.Now()
		if err := c.Begin(ctx); err != nil {
			b.Fatal(err)
		}
		if err := c.Mark(ctx); err != nil {
			b.Fatal(err)
		}
		marking += time.Since(start)
		b.StopTimer()
		for i := range changed {
			if err := s.AddMember(ctx, "one", l, contentOf(name(i))); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		start = time.Now()
		if err := c.Freeze(ctx, gc.HoldMax); err != nil {
			b.Fatal(err)
		}
		freezing += time.Since(start)
		parts := c.Dead()
		start = time.Now()
		for _, p := range parts {
			if n, err := c.SweepPart(ctx, p); err != nil || n != dead {
				b.Fatalf("Sweep: %d, %v", n, err)
			}
		}
		if err := c.End(ctx); err != nil {
			b.Fatal(err)
		}
		sweeping += time.Since(start)
	}
	b.ReportMetric(float64(marking.Milliseconds())/float64(b.N), "ms-mark")
	b.ReportMetric(float64(freezing.Microseconds())/1000/float64(b.N), "ms-freeze")
	b.ReportMetric(float64(sweeping.Microseconds())/1000/float64(b.N), "ms-sweep")
}
