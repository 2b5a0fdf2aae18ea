//go:build unix

package client

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openInput makes a FIFO and opens it for writing. It is opened for reading
// too: opening then waits for nobody.
func openInput(dir, name string) (*os.File, string, error) {
	path, err := mkfifo(dir, name)
	if err != nil {
		return nil, "", err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	return f, path, err
}

// openOutput makes a FIFO and opens it for reading. As long as hold is open it
// has no end.
func openOutput(dir, name string) (from, hold *os.File, path string, err error) {
	if path, err = mkfifo(dir, name); err != nil {
		return nil, nil, "", err
	}
	if from, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, "", err
	}
	if hold, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		from.Close()
		return nil, nil, "", err
	}
	return from, hold, path, nil
}

func mkfifo(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return "", &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return path, nil
}
