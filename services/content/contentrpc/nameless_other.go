//go:build !linux

package contentrpc

import "os"

// Elsewhere no files come.
func nameless(*os.File) (bool, error) { return false, nil }
