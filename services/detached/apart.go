package detached

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Apart calls mount on a thread in a mount namespace of its own, from which a
// descriptor is kept. The namespace ends with the thread.
func Apart(mount func() (*os.File, error)) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread stands for the process in /proc and cannot end.
			// While it is held here, another goroutine gets another thread.
			inner := make(chan struct{})
			go func() { defer close(inner); run() }()
			<-inner
			runtime.UnlockOSThread()
			return
		}
		// The thread is not unlocked: it ends with the goroutine.
		if err := leave(); err != nil {
			done <- result{nil, err}
			return
		}
		f, err := mount()
		done <- result{f, err}
	}
	go run()
	r := <-done
	return r.f, r.err
}

// leave takes the calling thread out of the mount namespace of the process.
// Unmounts outside are followed, so that the copies of other mounts in the new
// namespace keep nothing busy.
func leave() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	return nil
}
