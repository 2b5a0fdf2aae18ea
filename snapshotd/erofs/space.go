package erofs

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/layer"
)

const (
	// inlineMax is how long contents are at most that are kept behind their
	// inode, in bytes.
	inlineMax = blockSize / 2

	// extentMax is how many blocks are taken for inodes at once. The first
	// time it is one, so that a small layer has a small image.
	extentMax = 16
)

// A space is the file of an image and what of it is taken. Inodes are in
// extents, which are in memory until they are full; contents are between them.
type space struct {
	f    *os.File
	next int64 // first free block

	freeMin int64 // bytes of free disk that are left alone
	looked  int64 // what next was when that was looked at
	written int64 // bytes of contents since then

	extent   []byte // the one that is being filled
	extentAt int64  // where it is in the file
	used     int    // bytes of it
	grow     int64  // blocks of the next one
}

// lookEvery is after how many blocks the free disk is looked at, which is how
// much a layer may miss what is to be left alone by.
const lookEvery = layer.Overshoot >> blockBits

func newSpace(f *os.File, freeMin int64) *space {
	return &space{f: f, next: 1, freeMin: freeMin, looked: -lookEvery, extent: make([]byte, blockSize), used: superAt + superSize, grow: 2}
}

// blocks takes room for size bytes and returns its first block.
func (s *space) blocks(size int64) (uint32, error) {
	first := s.next
	n := (size + blockSize - 1) >> blockBits
	if size < 0 || n > blocksMax-first {
		return 0, fmt.Errorf("a layer of more than %d blocks: %w", blocksMax, errdefs.ErrInvalidArgument)
	}
	s.next += n
	return uint32(first), s.look()
}

// look fails if the disk is too full to go on.
func (s *space) look() error {
	if s.next-s.looked < lookEvery {
		return nil
	}
	return s.room()
}

// wrote is look after so many bytes of contents, of which room was taken before.
func (s *space) wrote(n int64) error {
	if s.written += n; s.written < layer.Overshoot {
		return nil
	}
	return s.room()
}

func (s *space) room() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.f.Fd()), &st); err != nil {
		return err
	}
	// What was taken is not written yet, or is a hole.
	if free := int64(st.Bavail) * st.Bsize; free < s.freeMin { //nolint:unconvert // 32 bits elsewhere
		return fmt.Errorf("%d bytes of disk left, of which %d are reserved: %w", free, s.freeMin, errdefs.ErrResourceExhausted)
	}
	s.looked, s.written = s.next, 0
	return nil
}

// inode takes room for an inode with its attributes, size bytes in all, and
// behind it for contents, which must be in one block.
func (s *space) inode(size, contents int) (at int64, err error) {
	for {
		pos := align(s.used, slotSize)
		if contents > 0 && (pos+size)%blockSize+contents > blockSize {
			pos = align(align(pos+size, blockSize)-size, slotSize)
		}
		if pos+size+contents <= len(s.extent) {
			s.used = pos + size + contents
			return s.extentAt + int64(pos), nil
		}
		if err := s.turn(size + contents); err != nil {
			return 0, err
		}
	}
}

// turn begins the next extent, which has room for something of size bytes.
func (s *space) turn(size int) error {
	if err := s.flush(); err != nil {
		return err
	}
	n := max(s.grow, int64(align(size+2*blockSize, blockSize)>>blockBits))
	s.grow = min(2*s.grow, extentMax)
	first, err := s.blocks(n << blockBits)
	if err != nil {
		return err
	}
	s.extent = make([]byte, n<<blockBits)
	s.extentAt, s.used = int64(first)<<blockBits, 0
	return nil
}

func (s *space) flush() error {
	_, err := s.f.WriteAt(s.extent[:s.used], s.extentAt)
	return err
}

// put writes into an extent, be it in memory or not.
func (s *space) put(b []byte, at int64) error {
	if at >= s.extentAt && at < s.extentAt+int64(len(s.extent)) {
		copy(s.extent[at-s.extentAt:], b)
		return nil
	}
	_, err := s.f.WriteAt(b, at)
	return err
}

// finish writes the last extent and the superblock, and makes the file as long
// as it says.
func (s *space) finish(root uint16, inodes uint64) error {
	end := s.extentAt + int64(len(s.extent))
	if s.next<<blockBits == end {
		// Nothing follows the extent: what is not used of it goes.
		s.next = (s.extentAt + int64(align(s.used, blockSize))) >> blockBits
	}
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.f.Truncate(s.next << blockBits); err != nil {
		return err
	}
	rest := make([]byte, blockSize-superAt-superSize)
	if _, err := s.f.ReadAt(rest, superAt+superSize); err != nil {
		return err
	}
	_, err := s.f.WriteAt(super{root: root, inodes: inodes, blocks: uint32(s.next)}.encode(rest), superAt)
	return err
}

// align rounds up to a multiple of a power of two.
func align(n, to int) int { return (n + to - 1) &^ (to - 1) }
