package snapshot

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/idmap"
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

// Check is [errdefs.ErrInvalidArgument] if a label is too long or says no mapping
// where it has to, and [errdefs.ErrNotImplemented] for a parent that a commit
// cannot take.
func (o Options) Check(t Traits) error {
	if err := label.Check(o.Labels); err != nil {
		return err
	}
	if o.Parent != "" && !t.Rebase {
		return fmt.Errorf("commit on another parent: %w", errdefs.ErrNotImplemented)
	}
	_, err := IDs(o.Labels)
	return err
}

// IDs returns the ids that the labels of a snapshot say. What is not a mapping
// is [errdefs.ErrInvalidArgument].
func IDs(labels map[string]string) (idmap.Map, error) {
	m, err := idmap.Parse(labels[LabelUIDMapping], labels[LabelGIDMapping])
	if err != nil {
		return idmap.Map{}, fmt.Errorf("labels %s and %s: %w", LabelUIDMapping, LabelGIDMapping, err)
	}
	return m, nil
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
