package pack

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/snapshotd/changes"
)

// TestALayerIsNotEndless has two files of which there is next to nothing on disk.
func TestALayerIsNotEndless(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, sizeMax+1)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	format, err := FormatOf("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), io.Discard, format, changes.Trees{Upper: root}, nil); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("Write = %v, want %v", err, errdefs.ErrResourceExhausted)
	}
}
