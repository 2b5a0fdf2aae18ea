package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A shim that ends may find the socket of the next under its name, which may have
// the inode that its own had.
func TestASocketsNameIsRemovedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "socket")
	for range 20 {
		lis, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		name := nameOf(path)
		name.remove()
		lis.Close()
		next, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		name.remove()
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("the name of the next socket: %v", err)
		}
		os.Remove(path)
		next.Close()
	}
}
