package mounter

import (
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/activation"
)

// TestImagesLeaveRoomOnTheDisk that was there before, or nothing of them.
func TestImagesLeaveRoomOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	parent, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	i := activation.Image{FS: "ext4", Size: 16 << 20}
	for _, freeMin := range []int64{2 * free, free - 1<<20} {
		if err := (linux{freeMin}).MakeImage(t.Context(), parent, "new.img", i); !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("with %d bytes free, where %d are to be left: %v, want %v", free, freeMin, err, errdefs.ErrResourceExhausted)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if err := (linux{0}).MakeImage(t.Context(), parent, "new.img", i); err != nil {
		t.Errorf("with room: %v", err)
	}
}
