package snapshot

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/label"
)

// keyMax is how long a key or name is at most, in bytes.
const keyMax = 4096

// CheckKey is [errdefs.ErrInvalidArgument] unless a store can keep a snapshot
// under key. There is no more to it: keys are opaque.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("snapshot key must not be empty: %w", errdefs.ErrInvalidArgument)
	case len(key) > keyMax:
		return fmt.Errorf("snapshot key of %d bytes is longer than %d: %w", len(key), keyMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Check is [errdefs.ErrInvalidArgument] if a label is too long, and
// [errdefs.ErrNotImplemented] if something is asked for that is not a trait.
func (o Options) Check(t Traits) error {
	if err := label.Check(o.Labels); err != nil {
		return err
	}
	if o.Parent != "" && !t.Rebase {
		return fmt.Errorf("commit on another parent: %w", errdefs.ErrNotImplemented)
	}
	for _, l := range []string{LabelUIDMapping, LabelGIDMapping} {
		if o.Labels[l] != "" && !t.RemapIDs {
			return fmt.Errorf("label %s: %w", l, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// Field reads what filters of a list may name: "kind", "name", "parent" and
// "labels.<key>".
func (i Info) Field(path []string) (value string, present bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "kind":
		return string(i.Kind), true
	case "name":
		return i.Name, true
	case "parent":
		return i.Parent, true
	case "labels":
		value, present = i.Labels[strings.Join(path[1:], ".")]
		return value, present
	}
	return "", false
}
