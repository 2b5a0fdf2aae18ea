package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// restEvery is how often a daemon asks itself whether it has anything to do.
	restEvery = 5 * time.Second

	// calm is how many bytes a daemon allocates at most, between two looks, that
	// has nothing to do.
	calm = 512 << 10
)

// rest gives back to the system, as soon as a daemon has nothing to do, what its
// busy time left on the heap. Go does so by itself only while it allocates. It
// does so twice: the database keeps what it may need again for some time.
func rest(ctx context.Context) error {
	ticker := time.NewTicker(restEvery)
	defer ticker.Stop()
	seen, looks := uint64(0), 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if looks++; allocated()-seen > calm {
			looks = 0
		}
		if looks == 1 || looks == 5 {
			debug.FreeOSMemory()
		}
		seen = allocated()
	}
}

// allocated is how many bytes were ever allocated. It stops the process for some
// microseconds.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
