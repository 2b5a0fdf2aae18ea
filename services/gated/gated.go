// Package gated puts a database behind the gate of package gc, for the daemons
// whose records say what refers to what.
package gated

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
)

// Records are what a [kv.DB] is used for.
type Records interface {
	View(fn func(tx *kv.Tx) error) error
	Update(ctx context.Context, fn func(tx *kv.Tx) error) error
	Release(ctx context.Context, fn func(tx *kv.Tx) error) error
}

// A DB is the records behind the gate at which writers wait while garbage is
// found. Whoever creates a record, refers to one, or says that there is one goes
// through Update, Touch or Look, and what it puts is noted. So no place that
// writes can forget to.
type DB struct {
	Records
	Gate *gc.Gate

	// Node returns the node that a record is of, or decides about.
	Node func(key []byte) (gc.Node, bool)

	// Free says of which nodes records are written past the gate; nil is none.
	Free func(n gc.Node) bool
}

// Update is kv's.
func (d DB) Update(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return d.enter(ctx, func() error { return d.Records.Update(ctx, d.noting(fn)) })
}

// Touch is Update for what has to go on when the disk is nearly full.
func (d DB) Touch(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return d.enter(ctx, func() error { return d.Records.Release(ctx, d.noting(fn)) })
}

// Look is View for who says that something exists, and notes it.
func (d DB) Look(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return d.enter(ctx, func() error { return d.View(fn) })
}

func (d DB) enter(ctx context.Context, do func() error) error {
	if err := d.Gate.Enter(ctx); err != nil {
		return err
	}
	defer d.Gate.Leave()
	return do()
}

// noting notes what fn puts before anybody can see it.
func (d DB) noting(fn func(tx *kv.Tx) error) func(tx *kv.Tx) error {
	return func(tx *kv.Tx) error {
		if err := fn(tx); err != nil || !d.Gate.Noting() {
			return err
		}
		for key := range tx.Puts() {
			if n, ok := d.Node(key); ok {
				d.Gate.Note(n)
			}
		}
		return nil
	}
}

// Release waits for nobody: it takes away, and puts nothing that refers.
func (d DB) Release(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return d.Records.Release(ctx, func(tx *kv.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		for key := range tx.Puts() {
			if n, ok := d.Node(key); ok && (d.Free == nil || !d.Free(n)) {
				return fmt.Errorf("%v is written past the gate: %w", n, errdefs.ErrInternal)
			}
		}
		return nil
	})
}

// holdKey is the row with the deadline until which writers are held, also by a
// process that is started again before.
var holdKey = kv.Key("gc.hold")

// Resume holds writers as a process before this one promised.
func (d DB) Resume() error {
	var deadline gc.Instant
	err := d.View(func(tx *kv.Tx) error { return tx.GetJSON(holdKey, &deadline) })
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if errors.Is(err, errdefs.ErrDataLoss) {
		// Any deadline is in less than that.
		deadline, err = gc.Now().Add(gc.HoldMax), nil
	}
	d.Gate.Hold(deadline)
	return err
}

// Freeze holds writers until a deadline, which is durable before, and returns
// what was noted.
func (d DB) Freeze(ctx context.Context, epoch gc.Epoch, deadline gc.Instant) ([]gc.Node, error) {
	return d.Gate.Freeze(ctx, epoch, deadline, func(ctx context.Context) error {
		return d.Records.Release(ctx, func(tx *kv.Tx) error { return tx.PutJSON(holdKey, deadline) })
	})
}
