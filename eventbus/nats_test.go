package eventbus_test

import (
	"testing"
	"time"
)

var at = time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)

// eventually tries until there is no error.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if err = try(); err == nil {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	t.Fatalf("not in time: %s: %v", what, err)
}
