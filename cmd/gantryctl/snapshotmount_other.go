//go:build !linux

package main

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
)

// mountOn is for where the suite runs.
func mountOn([]mount.Mount, string) error {
	return fmt.Errorf("snapshots are mounted on Linux only: %w", errdefs.ErrNotImplemented)
}
