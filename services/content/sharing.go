package content

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/namespace"
)

// A Sharing is what a store lets a namespace have of another's blobs without
// their bytes being written again.
type Sharing string

const (
	// Shared is everything.
	Shared Sharing = "shared"

	// Isolated is the blobs that a namespace has which says so, by the label
	// [namespace.LabelShareable]. Whoever wants another has to show that it has
	// the bytes.
	Isolated Sharing = "isolated"
)

// Check is [errdefs.ErrInvalidArgument] for anything else.
func (s Sharing) Check() error {
	if s != Shared && s != Isolated {
		return fmt.Errorf("%q is neither %q nor %q: %w", string(s), Shared, Isolated, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Namespaces knows their labels: a part of [namespace.Store].
type Namespaces interface {
	Get(ctx context.Context, name string) (namespace.Info, error)
}

// labelsTime is how long a look at labels may take, of however many namespaces.
const labelsTime = 2 * time.Second

// Shareable says whether one of the named namespaces lets others have what it
// has. Where that cannot be known none does: bytes that are written again cost
// time, and bytes that are lent are known for good.
func Shareable(ctx context.Context, s Namespaces, names ...string) bool {
	if s == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, labelsTime)
	defer cancel()
	for _, name := range names {
		info, err := s.Get(ctx, name)
		if err == nil && info.Labels[namespace.LabelShareable] == "true" {
			return true
		}
		if err != nil && ctx.Err() != nil {
			return false
		}
	}
	return false
}
