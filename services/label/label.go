// Package label holds the rules for labels that every noun shares: how long one
// may be, that an empty value deletes, and what a field mask touches. They are
// containerd's, because its clients rely on them.
package label

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// sizeMax is how long a label's key and value are together at most, in
	// bytes.
	sizeMax = 4096

	// allMax is how long an object's labels are together at most, in bytes.
	// containerd has no such limit: there, who adds one label after the other
	// makes an object that no list can send.
	allMax = 2 << 20
)

// Check is [errdefs.ErrInvalidArgument] if a key is empty, a label is longer
// than 4096 bytes, or all together are longer than 2 MiB.
func Check(labels map[string]string) error {
	if n := size(labels); n > allMax {
		return fmt.Errorf("%d labels of %d bytes are more than %d bytes: %w", len(labels), n, allMax, errdefs.ErrInvalidArgument)
	}
	for k, v := range labels {
		if k == "" {
			return fmt.Errorf("label key must not be empty: %w", errdefs.ErrInvalidArgument)
		}
		if n := len(k) + len(v); n > sizeMax {
			return fmt.Errorf("label key and value length (%d bytes) greater than maximum size (%d bytes), key: %s: %w",
				n, sizeMax, k[:min(len(k), 64)], errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func size(labels map[string]string) (n int) {
	for k, v := range labels {
		n += len(k) + len(v)
	}
	return n
}

// Clean returns a copy without the labels whose value is empty; nil if none is
// left.
func Clean(labels map[string]string) map[string]string {
	var c map[string]string
	for k, v := range labels {
		if v == "" {
			continue
		}
		if c == nil {
			c = make(map[string]string, len(labels))
		}
		c[k] = v
	}
	return c
}

// Update returns what is left of old when a request gives new and names fields.
// No fields, or "labels", replace all; "labels.<key>" sets that key, or deletes
// it if new has no value for it. Any other field, a label that fails [Check],
// and labels that become more than 2 MiB are [errdefs.ErrInvalidArgument].
// Neither map is changed.
func Update(old, new map[string]string, fields []string) (map[string]string, error) {
	if err := Check(new); err != nil {
		return nil, err
	}
	if len(fields) == 0 {
		return Clean(new), nil
	}
	out := maps.Clone(old)
	for _, f := range fields {
		key, one := strings.CutPrefix(f, "labels.")
		switch {
		case f == "labels":
			out = maps.Clone(new)
		case one && key != "":
			if out == nil {
				out = make(map[string]string)
			}
			out[key] = new[key]
		default:
			return nil, fmt.Errorf("cannot update field %q: %w", f, errdefs.ErrInvalidArgument)
		}
	}
	out = Clean(out)
	if n := size(out); n > allMax && n > size(old) {
		return nil, fmt.Errorf("labels would become %d bytes, more than %d: %w", n, allMax, errdefs.ErrInvalidArgument)
	}
	return out, nil
}
