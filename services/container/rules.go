package container

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/typed"
)

// Check is [errdefs.ErrInvalidArgument] unless a store can keep c.
func Check(c Container) error {
	if err := ident.Check(c.ID); err != nil {
		return fmt.Errorf("container.ID: %w", err)
	}
	if _, ok := c.Extensions[""]; ok {
		return fmt.Errorf("container.Extensions keys must not be zero-length: %w", errdefs.ErrInvalidArgument)
	}
	if err := label.Check(c.Labels); err != nil {
		return fmt.Errorf("container.Labels: %w", err)
	}
	switch {
	case c.Runtime.Name == "":
		return fmt.Errorf("container.Runtime.Name must be set: %w", errdefs.ErrInvalidArgument)
	case c.Spec == nil:
		return fmt.Errorf("container.Spec must be set: %w", errdefs.ErrInvalidArgument)
	case c.SnapshotKey != "" && c.Snapshotter == "":
		return fmt.Errorf("container.Snapshotter must be set if container.SnapshotKey is set: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Update returns old with what fields take from new, by the rules of
// [Store.Update]. Neither is changed.
func Update(old, new Container, fields []string) (Container, error) {
	c := old
	if len(fields) == 0 {
		if new.Snapshotter != old.Snapshotter {
			return Container{}, fmt.Errorf("container.Snapshotter field is immutable: %w", errdefs.ErrInvalidArgument)
		}
		if new.Runtime.Name != old.Runtime.Name {
			return Container{}, fmt.Errorf("container.Runtime.Name field is immutable: %w", errdefs.ErrInvalidArgument)
		}
		fields = []string{"labels", "spec", "extensions", "image", "snapshotkey"}
	}
	for _, f := range fields {
		var err error
		extension, one := strings.CutPrefix(f, "extensions.")
		switch {
		case f == "labels" || strings.HasPrefix(f, "labels."):
			c.Labels, err = label.Update(c.Labels, new.Labels, []string{f})
		case f == "extensions":
			c.Extensions = merge(c.Extensions, new, slices.Collect(maps.Keys(new.Extensions)))
		case one && extension != "":
			c.Extensions = merge(c.Extensions, new, []string{extension})
		case f == "spec":
			c.Spec = new.Spec
		case f == "image":
			c.Image = new.Image
		case f == "snapshotkey":
			c.SnapshotKey = new.SnapshotKey
		default:
			err = fmt.Errorf("cannot update field %q: %w", f, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return Container{}, err
		}
	}
	return c, Check(c)
}

func merge(old map[string]typed.Value, new Container, keys []string) map[string]typed.Value {
	all := maps.Clone(old)
	for _, k := range keys {
		v, ok := new.Extensions[k]
		if !ok {
			continue
		}
		if all == nil {
			all = make(map[string]typed.Value)
		}
		all[k] = v
	}
	return all
}

// Field reads what filters of a list may name: "id", "runtime.name", "image"
// and "labels.<key>".
func (c Container) Field(path []string) (value string, present bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "id":
		return c.ID, c.ID != ""
	case "runtime":
		if len(path) > 1 && path[1] == "name" {
			return c.Runtime.Name, c.Runtime.Name != ""
		}
	case "image":
		return c.Image, c.Image != ""
	case "labels":
		v, ok := c.Labels[strings.Join(path[1:], ".")]
		return v, ok
	}
	return "", false
}
