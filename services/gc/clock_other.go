//go:build !linux

package gc

import "time"

var start = time.Now()

// Now is of this process only: no daemon of the suite runs here.
func Now() Instant { return Instant(time.Since(start)) + 1 }
