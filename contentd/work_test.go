package contentd

import (
	"context"
	"errors"
	"testing"
)

// runWork runs a work of the daemon's until the test ends.
func runWork(t testing.TB, work func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("work: %v", err)
		}
	})
}
