package remote

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// TestOverlaysThatAreNotUnderstood has options of which only the kernel, or only
// a mount program, knows what they mean.
func TestOverlaysThatAreNotUnderstood(t *testing.T) {
	d := New("far", nil, snapshot.Traits{}, kernel.New())
	for _, options := range [][]string{
		nil, {"lowerdir="}, {"lowerdir=/a::/b"}, {"lowerdir=/a:"}, {"lowerdir=a:b"}, {`lowerdir=/a\:b`}, {"upperdir=up", "lowerdir=/a"},
	} {
		if o, err := d.overlayOf(mount.Mount{Type: "overlay", Options: options}); !errors.Is(err, errdefs.ErrNotImplemented) {
			t.Errorf("overlayOf(%q) = %+v, %v, want %v", options, o, err, errdefs.ErrNotImplemented)
		}
	}
	for _, options := range [][]string{{"lowerdir=/a:/b"}, {"upperdir=/up", "workdir=/work"}, {"upperdir=/up", "workdir=/work", "lowerdir=/a"}} {
		if _, err := d.overlayOf(mount.Mount{Type: "overlay", Options: options}); err != nil {
			t.Errorf("overlayOf(%q): %v", options, err)
		}
	}
}
