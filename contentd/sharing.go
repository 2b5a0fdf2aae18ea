package contentd

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
)

// mayBorrow says whether the policy lets the namespace have the bytes of d, if
// they are there, and not write them again. It is called with no lock.
func (c *scoped) mayBorrow(ctx context.Context, d digest.Digest) (bool, error) {
	if c.cfg.Sharing == content.Shared {
		return true, nil
	}
	var holders []string
	if err := c.db.View(func(tx *kv.Tx) error {
		holders = holdersOf(tx, d)
		return nil
	}); err != nil {
		return false, err
	}
	if slices.Contains(holders, c.scope.Name) {
		return true, nil
	}
	return content.Shareable(ctx, c.needs.Namespaces, holders...), nil
}
