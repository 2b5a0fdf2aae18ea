package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/snapshotd/driver"
)

// Labels returns those that the snapshotter has given a snapshot, or was handed
// down. What nobody could keep of them is left out.
func (d *Driver) Labels(ctx context.Context, s driver.Snapshot) (map[string]string, error) {
	i, err := d.stat(ctx, s)
	return fit(i.Labels), err
}

// Relabel hands down labels that were changed: s.Labels is what they all are now,
// and fields are as in snapshot.Store.
func (d *Driver) Relabel(ctx context.Context, s driver.Snapshot, fields ...string) error {
	if len(fields) > 0 {
		fields = slices.DeleteFunc(slices.Clone(fields), func(f string) bool {
			key, one := strings.CutPrefix(f, "labels.")
			return one && !driver.Inherited(key)
		})
		if len(fields) == 0 {
			return nil // nothing of it is handed down
		}
	}
	return d.call(ctx, s.Namespace, askTime, func(ctx context.Context, store snapshot.Store) error {
		_, err := store.Update(ctx, snapshot.Info{Name: s.Key, Labels: s.Labels}, fields...)
		return err
	})
}

// targetsMax is how many snapshots are looked through for a target: a process
// that does not heed the filter is not read without end.
const targetsMax = 1 << 20

// keyMax is how long a key of the snapshotter's own may be, in bytes.
const keyMax = 4096

// Target returns the committed snapshot that the snapshotter says it has already
// in place of s, by the label of s. One that has another parent is
// [errdefs.ErrInvalidArgument].
func (d *Driver) Target(ctx context.Context, s driver.Snapshot) (found snapshot.Info, err error) {
	target, parent := s.Labels[snapshot.LabelTarget], above(s.Parents)
	filter := fmt.Sprintf("labels.%q==%q,parent==%q", snapshot.LabelTarget, target, parent)
	elsewhere := errors.New("there is none")
	err = d.call(ctx, s.Namespace, countTime, func(ctx context.Context, store snapshot.Store) error {
		seen := 0
		for i, err := range store.List(ctx, filter) {
			if err != nil {
				return err
			}
			if seen++; seen > targetsMax {
				return fmt.Errorf("target %q: not among %d snapshots of %s: %w", target, targetsMax, d.name, errdefs.ErrResourceExhausted)
			}
			// Not everybody heeds a filter.
			if i.Kind != snapshot.Committed || i.Labels[snapshot.LabelTarget] != target || i.Name == "" || len(i.Name) > keyMax {
				continue
			}
			if i.Parent == parent {
				found = i
				return nil
			}
			elsewhere = fmt.Errorf("it has another parent: %w", errdefs.ErrInvalidArgument)
		}
		if errors.Is(elsewhere, errdefs.ErrInvalidArgument) {
			return fmt.Errorf("target %q of snapshotter %s: %w", target, d.name, elsewhere)
		}
		return fmt.Errorf("target %q of snapshotter %s: %v: %w", target, d.name, elsewhere, errdefs.ErrNotFound)
	})
	found.Labels = fit(found.Labels)
	return found, err
}

// fit returns the labels that a record can have.
func fit(labels map[string]string) map[string]string {
	kept := make(map[string]string, len(labels))
	for k, v := range labels {
		if label.Check(map[string]string{k: v}) == nil {
			kept[k] = v
		}
	}
	if label.Check(kept) != nil {
		return nil // all of them are too much
	}
	return kept
}
