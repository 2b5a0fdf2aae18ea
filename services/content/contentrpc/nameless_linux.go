package contentrpc

import (
	"os"

	"golang.org/x/sys/unix"
)

// nameless says whether a file has been removed.
func nameless(f *os.File) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Nlink == 0, err
}
