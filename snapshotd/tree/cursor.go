package tree

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Cursor is a directory in a tree, and moves down and up. It follows no link
// and enters nothing that is mounted there. However deep it goes, it keeps few
// directories open.
type Cursor struct{ path path }

// NewCursor returns a cursor at root. The caller closes it.
func NewCursor(root int) (*Cursor, error) {
	c := &Cursor{}
	if err := c.path.down(root, "."); err != nil {
		return nil, err
	}
	return c, nil
}

// Dir is the directory, open for reading until the cursor moves.
func (c *Cursor) Dir() int { return c.path.here().fd }

// Down enters the directory called name.
func (c *Cursor) Down(name string) error { return c.path.down(c.Dir(), name) }

// Up goes back to the directory that it came from: ESTALE if that is not above
// any more. The root has nothing above.
func (c *Cursor) Up() error {
	_, err := c.path.up()
	return err
}

// Close closes what is open.
func (c *Cursor) Close() { c.path.close() }

// OpenFile opens the regular file called name in dir for reading, without a
// trace in its times: ESTALE if something else is there. A device is not opened,
// not even where it takes the place of a file at that moment: to open one can
// have effects.
func OpenFile(dir int, name string) (*os.File, error) {
	fd, err := openat2(dir, name, unix.O_PATH|unix.O_NOFOLLOW,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if errors.Is(err, unix.ELOOP) {
		return nil, unix.ESTALE
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.ESTALE
	}
	again := "/proc/self/fd/" + strconv.Itoa(fd)
	f, err := unix.Open(again, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) {
		f, err = unix.Open(again, unix.O_RDONLY|unix.O_CLOEXEC, 0) // somebody else's file
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(f), name), nil
}
