package erofs

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/snapshotd/layer"
)

// TestImageLeavesRoomOnTheDisk has one large file, for which all room is taken
// before any of it is copied.
func TestImageLeavesRoomOnTheDisk(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	must(t, err)
	defer f.Close()
	s := newSpace(f, 0)
	if _, err := s.blocks(1 << 40); err != nil {
		t.Fatalf("blocks: %v", err)
	}
	s.freeMin = math.MaxInt64 // others fill the disk
	for range layer.Overshoot / copySize {
		if err = s.wrote(copySize); err != nil {
			break
		}
	}
	if !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("after %d bytes: %v, want %v", layer.Overshoot, err, errdefs.ErrResourceExhausted)
	}
}
