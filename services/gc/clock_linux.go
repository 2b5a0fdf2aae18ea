package gc

import "golang.org/x/sys/unix"

// Now reads the clock that all processes of the node share. It goes on as Go's
// timers do.
func Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // a kernel without it starts no Go program
	}
	return Instant(ts.Nano())
}
