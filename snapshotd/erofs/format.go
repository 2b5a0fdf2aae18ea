package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// What the kernel reads, in its struct erofs_super_block and what belongs to
// it; all of it is little endian.
const (
	blockBits = 12
	blockSize = 1 << blockBits

	superAt      = 1024 // where the superblock is in its block
	superSize    = 128
	superMagic   = 0xE0F5E1E2
	compatSum    = 1 << 0 // the superblock has a checksum
	compatMtime  = 1 << 1 // the time of an inode is that of its contents
	slotSize     = 32     // an inode is called by the number of its slot
	inodeSize    = 64     // of the form that has all the fields
	inodeWide    = 1      // the bit that says so
	layoutShift  = 1
	layoutPlain  = 0 // contents in blocks of their own
	layoutInline = 2 // contents right behind the inode

	direntSize  = 12
	attrsHeader = 12
	attrHeader  = 4
	attrsMax    = attrsHeader + 4*(1<<16-2) // what the count in an inode can say
	attrNameMax = 255
	attrMax     = 1<<16 - 1

	blocksMax = 1<<32 - 1
)

var le = binary.LittleEndian

// A super is what this package keeps in a superblock.
type super struct {
	root   uint16 // slot of the root
	inodes uint64
	blocks uint32
}

// encode returns the first block's part from superAt on. rest is what follows
// the superblock there, and is in the checksum.
func (s super) encode(rest []byte) []byte {
	b := make([]byte, superSize, superSize+len(rest))
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatSum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], s.root)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	b = append(b, rest...)
	le.PutUint32(b[4:], checksum(b))
	return b
}

// checksum is the kernel's: without the last inversion.
func checksum(b []byte) uint32 { return ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

var errImage = errors.New("not a whole image")

// readSuper reads the superblock of an image, and looks whether the file is as
// long as it says.
func readSuper(f *os.File) (super, error) {
	var b [blockSize - superAt]byte
	if _, err := f.ReadAt(b[:], superAt); errors.Is(err, io.EOF) {
		return super{}, errImage
	} else if err != nil {
		return super{}, err
	}
	sum := le.Uint32(b[4:])
	le.PutUint32(b[4:], 0)
	if le.Uint32(b[0:]) != superMagic || b[12] != blockBits || sum != checksum(b[:]) {
		return super{}, errImage
	}
	s := super{root: le.Uint16(b[14:]), inodes: le.Uint64(b[16:]), blocks: le.Uint32(b[36:])}
	fi, err := f.Stat()
	if err != nil {
		return super{}, err
	}
	if fi.Size() != int64(s.blocks)<<blockBits {
		return super{}, fmt.Errorf("%d bytes instead of %d blocks: %w", fi.Size(), s.blocks, errImage)
	}
	return s, nil
}

// An inode is what there is to say of a file besides its contents.
type inode struct {
	layout int
	attrs  int // bytes of extended attributes
	size   int64
	place  uint32 // first block of the contents, or number of a device
	nlink  uint32
	serial uint32
	stat   *unix.Stat_t
}

// Offsets of what is written late.
const (
	inodeSizeAt  = 8
	inodeNlinkAt = 44
)

func (i inode) encode(b []byte) {
	le.PutUint16(b[0:], uint16(inodeWide|i.layout<<layoutShift))
	if i.attrs > 0 {
		le.PutUint16(b[2:], uint16((i.attrs-attrsHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(i.stat.Mode))
	le.PutUint64(b[inodeSizeAt:], uint64(i.size))
	le.PutUint32(b[16:], i.place)
	le.PutUint32(b[20:], i.serial)
	le.PutUint32(b[24:], i.stat.Uid)
	le.PutUint32(b[28:], i.stat.Gid)
	le.PutUint64(b[32:], uint64(i.stat.Mtim.Sec))
	le.PutUint32(b[40:], uint32(i.stat.Mtim.Nsec))
	le.PutUint32(b[inodeNlinkAt:], i.nlink)
}

// ownerAt reads who owns the inode in a slot.
func ownerAt(f *os.File, slot uint16) (uid, gid uint32, err error) {
	var b [inodeSize]byte
	if _, err := f.ReadAt(b[:], int64(slot)*slotSize); err != nil {
		return 0, 0, err
	}
	return le.Uint32(b[24:]), le.Uint32(b[28:]), nil
}

// device is a number of a device as the kernel packs it.
func device(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// fileType is what a directory says of an entry.
func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}
