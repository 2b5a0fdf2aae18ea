package erofs

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/layer"
)

const (
	// copySize is how much is read at once, and copyMax how much the kernel is
	// asked to copy at once, in bytes.
	copySize = 256 << 10
	copyMax  = layer.Overshoot
)

// copy writes the contents of a file. What is a hole in it is one in the image.
func (b *builder) copy(at int64, fd int, st *unix.Stat_t) error {
	if st.Blocks*512 >= st.Size {
		return b.copyPiece(at, fd, 0, st.Size)
	}
	for from := int64(0); from < st.Size; {
		begin, err := unix.Seek(fd, from, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(fd, begin, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) {
			return nil // shorter than it was
		}
		if err != nil {
			return err
		}
		end = min(end, st.Size)
		if err := b.copyPiece(at+begin, fd, begin, end-begin); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// copyPiece copies n bytes, or what there is of them, by the kernel if it can.
func (b *builder) copyPiece(at int64, fd int, from, n int64) error {
	for n > copySize {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		r, w := from, at
		did, err := unix.CopyFileRange(fd, &r, int(b.space.f.Fd()), &w, int(min(n, copyMax)), 0)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			break
		}
		if did == 0 || err != nil {
			return err
		}
		if err := b.space.wrote(int64(did)); err != nil {
			return err
		}
		at, from, n = at+int64(did), from+int64(did), n-int64(did)
	}
	for n > 0 {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		did, err := unix.Pread(fd, b.buf[:min(n, copySize)], from)
		if did == 0 && err == nil {
			return nil // shorter than it was
		}
		if err != nil {
			return err
		}
		if _, err := b.space.f.WriteAt(b.buf[:did], at); err != nil {
			return err
		}
		if err := b.space.wrote(int64(did)); err != nil {
			return err
		}
		at, from, n = at+int64(did), from+int64(did), n-int64(did)
	}
	return nil
}
