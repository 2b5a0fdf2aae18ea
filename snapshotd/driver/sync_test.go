package driver

import (
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// slowDisk syncs when it is told to.
type slowDisk struct {
	Files
	began chan struct{}
	end   chan error
}

func (d slowDisk) SyncFS(string) error {
	d.began <- struct{}{}
	return <-d.end
}

func TestSyncsAreSharedByThoseWhoWaited(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		slow := slowDisk{began: make(chan struct{}), end: make(chan error)}
		d := TogetherOn(slow)
		broken := errors.New("broken")
		var wg sync.WaitGroup
		got := make([]error, 9)
		call := func(i int) { wg.Go(func() { got[i] = d.SyncFS(dir) }) }

		call(0)
		<-slow.began
		for i := 1; i < 9; i++ {
			call(i)
		}
		synctest.Wait() // all wait for a sync that has not begun
		slow.end <- nil
		<-slow.began
		slow.end <- broken
		wg.Wait()
		want := slices.Repeat([]error{broken}, 9)
		want[0] = nil
		if !slices.Equal(got, want) {
			t.Errorf("the first, and eight that came during its sync: %v, want %v", got, want)
		}

		call(0)
		<-slow.began
		slow.end <- nil
		wg.Wait()
		if got[0] != nil {
			t.Errorf("after an error: %v", got[0])
		}
	})
}

func TestSyncOfAMissingPathSaysSo(t *testing.T) {
	if err := TogetherOn(Files{}).SyncFS(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("no error")
	}
}
