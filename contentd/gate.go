package contentd

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// A gated is the records behind the gate at which writers wait while garbage is
// found. Whoever creates a record, refers to one, or says that there is one goes
// through Update, Touch or Look, and what it puts is noted. So no place that
// writes can forget to.
type gated struct {
	database
	gate *gc.Gate
}

// Update is kv's.
func (g gated) Update(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return g.enter(ctx, func() error { return g.database.Update(ctx, g.noting(fn)) })
}

// Touch is Update for what has to go on when the disk is nearly full.
func (g gated) Touch(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return g.enter(ctx, func() error { return g.database.Release(ctx, g.noting(fn)) })
}

// Look is View for who says that something exists, and notes it.
func (g gated) Look(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return g.enter(ctx, func() error { return g.View(fn) })
}

func (g gated) enter(ctx context.Context, do func() error) error {
	if err := g.gate.Enter(ctx); err != nil {
		return err
	}
	defer g.gate.Leave()
	return do()
}

// noting notes what fn puts before anybody can see it.
func (g gated) noting(fn func(tx *kv.Tx) error) func(tx *kv.Tx) error {
	return func(tx *kv.Tx) error {
		if err := fn(tx); err != nil || !g.gate.Noting() {
			return err
		}
		for key := range tx.Puts() {
			if n, ok := nodeAt(key); ok {
				g.gate.Note(n)
			}
		}
		return nil
	}
}

// Release waits for nobody: it takes away, and puts nothing that refers.
func (g gated) Release(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return g.database.Release(ctx, func(tx *kv.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		for key := range tx.Puts() {
			if n, ok := nodeAt(key); ok && n.Type != lease.TypeIngests {
				return fmt.Errorf("%v is written past the gate: %w", n, errdefs.ErrInternal)
			}
		}
		return nil
	})
}

// nodeAt returns the node that a record is of, or decides about.
func nodeAt(key []byte) (gc.Node, bool) {
	parts := kv.Parts(key)
	switch {
	case parts[0] == "blob" && len(parts) == 3:
		return node(parts[1], lease.TypeContent, parts[2]), true
	case parts[0] == "ingest" && len(parts) == 3:
		return node(parts[1], lease.TypeIngests, parts[2]), true
	case parts[0] == "member" && len(parts) == 6:
		return node(parts[1], parts[2], parts[3]), true
	}
	return gc.Node{}, false
}

func node(ns, of, id string) gc.Node {
	return gc.Node{Namespace: ns, Resource: lease.Resource{Type: of, ID: id}}
}

// note notes an object that the caller says exists, and that it does not write.
func (c *scoped) note(r lease.Resource) { c.gate.Note(gc.Node{Namespace: c.scope.Name, Resource: r}) }
