package shim

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/gantryd/gantry/services/ident"
)

// Config says for whom a shim runs.
type Config struct {
	Namespace string
	ID        string // of the shim, which is its first task's
	Bundle    string // of the shim; its own records go there

	// RuntimeRoot is where the OCI runtime keeps its state, per namespace
	// below it, for a request whose options name no place.
	RuntimeRoot string
}

// Check reports every mistake in c at once.
func (c Config) Check() error {
	var errs []error
	if err := ident.Check(c.Namespace); err != nil {
		errs = append(errs, fmt.Errorf("namespace: %w", err))
	}
	if err := ident.Check(c.ID); err != nil {
		errs = append(errs, fmt.Errorf("id: %w", err))
	}
	if !filepath.IsAbs(c.Bundle) {
		errs = append(errs, errors.New("bundle: want an absolute path"))
	}
	if !filepath.IsAbs(c.RuntimeRoot) {
		errs = append(errs, errors.New("runtime root: want an absolute path"))
	}
	return errors.Join(errs...)
}
