package rpc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLongErrorsAreCutAndKeepTheirKind(t *testing.T) {
	long := strings.Repeat("\u202e", 1<<20)
	for _, kind := range []error{errdefs.ErrNotFound, errdefs.ErrUnavailable, errdefs.ErrUnknown} {
		for _, err := range []error{
			fmt.Errorf("reference %s: %w", long, kind),
			fmt.Errorf("reference: %w: %w", kind, errors.New(long)),
			errors.Join(fmt.Errorf("reference: %w", kind), fmt.Errorf("%s: %w", long, errdefs.ErrInternal)),
		} {
			got := fromWire(toWire(err))
			if !errors.Is(got, kind) || !strings.HasPrefix(got.Error(), "reference") || len(got.Error()) > textMax {
				t.Errorf("%v becomes %d bytes: %.100v", kind, len(got.Error()), got)
			}
		}
	}
	// This one is told by how the text ends.
	got := fromWire(toWire(fmt.Errorf("reference %s: %w", long, errdefs.ErrConflict)))
	if !errors.Is(got, errdefs.ErrConflict) {
		t.Errorf("a conflict becomes %d bytes: %.100v", len(got.Error()), got)
	}
}
