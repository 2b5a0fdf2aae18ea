package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gantryd/gantry/services/event"
)

// keepTime is how seldom a cursor is written while events come. What was
// handled since is handled again after a crash.
const keepTime = time.Second

// readCursor returns what a keeper wrote, or nil if there is no file. What
// cannot be read as a cursor is one of no stream, and so a gap.
func readCursor(path string) (*event.Cursor, error) {
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("directory of the cursor: %w", err)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cursor: %w", err)
	}
	c, err := event.ParseCursor(strings.TrimSpace(string(b)))
	if err != nil {
		return &event.Cursor{}, nil
	}
	return &c, nil
}

// A keeper writes the latest cursor to a file, now and then and at the end.
type keeper struct {
	path  string
	wake  chan struct{} // holds one when there is something to write
	retry func(error)

	// mu guards the fields below it.
	mu     sync.Mutex
	latest event.Cursor
}

func (k *keeper) put(c event.Cursor) {
	k.mu.Lock()
	k.latest = c
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run keeps cursors until ctx ends; what was put by then is kept.
func (k *keeper) run(ctx context.Context) error {
	for {
		select {
		case <-k.wake:
		case <-ctx.Done():
			select {
			case <-k.wake:
				return k.write()
			default:
				return nil
			}
		}
		if err := k.write(); err != nil {
			k.retry(err)
			k.again()
		}
		sleep(ctx, keepTime)
	}
}

// again has what could not be written be written later.
func (k *keeper) again() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// write replaces the file, so that it is always whole: first the bytes, then
// the name, then the directory.
func (k *keeper) write() error {
	k.mu.Lock()
	c := k.latest
	k.mu.Unlock()
	beside := k.path + ".new"
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	_, err = f.WriteString(c.String() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	if err := os.Rename(beside, k.path); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	return syncDir(filepath.Dir(k.path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	return nil
}
