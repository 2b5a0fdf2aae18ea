package activation

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
)

// TestTemplatesDoNotMultiply asks for a long text many times over.
func TestTemplatesDoNotMultiply(t *testing.T) {
	made := []Active{{MountPoint: "/" + strings.Repeat("x", 10_000)}}
	m := mount.Mount{Options: slices.Repeat([]string{"{{mount 0}}"}, 100)}
	if _, err := Expand(m, made); err != nil {
		t.Errorf("Expand of 100 texts of 10 kB = %v", err)
	}
	m.Options = slices.Repeat(m.Options, 100)
	if _, err := Expand(m, made); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Expand of 10,000 texts of 10 kB = %v, want %v", err, errdefs.ErrInvalidArgument)
	}
}
