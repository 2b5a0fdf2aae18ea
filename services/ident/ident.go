// Package ident checks the names that travel in paths, sockets and subjects:
// namespaces, containers, execs, sandboxes and the components of event topics.
//
// Snapshot keys, image names, lease ids, ingest refs and label keys are not
// identifiers: they are opaque strings.
package ident

import (
	"fmt"
	"regexp"

	"github.com/containerd/errdefs"
)

// lengthMax is in bytes; containerd's rule, so that a name that is good there
// is good here.
const lengthMax = 76

var pattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`)

// Check is [errdefs.ErrInvalidArgument] unless s is an identifier: letters and
// digits, joined by single dots, dashes or underscores, at most 76 bytes.
func Check(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("identifier must not be empty: %w", errdefs.ErrInvalidArgument)
	case len(s) > lengthMax:
		return fmt.Errorf("identifier %q greater than maximum length (%d characters): %w", s, lengthMax, errdefs.ErrInvalidArgument)
	case !pattern.MatchString(s):
		return fmt.Errorf("identifier %q must match %v: %w", s, pattern, errdefs.ErrInvalidArgument)
	}
	return nil
}
