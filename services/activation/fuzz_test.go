package activation

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
)

func FuzzExpand(f *testing.F) {
	f.Add("lowerdir={{ overlay 0 1 }}")
	f.Add("{{ mount 0 }}/upper{{source 1}}{{ target 0 }}")
	f.Add("{{{{ mount 0 }}}}")
	made := []Active{{MountPoint: "/a"}, {MountPoint: "/b"}}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Expand(mount.Mount{Source: text}, made)
		if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Expand(%q) = %v", text, err)
		}
		if len(m.Source) > 64<<10+len(text) || err == nil && !strings.Contains(text, "{{") && m.Source != text {
			t.Errorf("Expand(%q) = %q", text, m.Source)
		}
		if _, _, err := TakeDirs(mount.Mount{Options: []string{"X-containerd.mkdir." + text}}); err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("TakeDirs(%q) = %v", text, err)
		}
		if _, i, err := TakeImage(mount.Mount{Options: []string{"X-containerd.mkfs.size=" + text}}); err == nil && i.Size <= 0 || err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("TakeImage(%q) = %v, %v", text, i, err)
		}
	})
}
