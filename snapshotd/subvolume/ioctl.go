package subvolume

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls, with the size of what they take in the second byte, as linux/btrfs.h
// makes them.
const (
	iocSearch       = 0xc0709411 // TREE_SEARCH_V2
	iocSnapCreate   = 0x50009417 // SNAP_CREATE_V2
	iocSubvolCreate = 0x50009418 // SUBVOL_CREATE_V2
	iocGetFlags     = 0x80089419 // SUBVOL_GETFLAGS
	iocSetFlags     = 0x4008941a // SUBVOL_SETFLAGS
	iocInfo         = 0x81f8943c // GET_SUBVOL_INFO
	iocSnapDestroy  = 0x5000943f // SNAP_DESTROY_V2

	flagReadOnly = 1 << 1
	flagByID     = 1 << 4

	max32 = math.MaxUint32
	max64 = math.MaxUint64
)

var native = binary.NativeEndian

// ioctl makes a call with b, which is as large as the call wants it.
func ioctl(fd int, call uint, b []byte) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(call), uintptr(unsafe.Pointer(&b[0])))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// volArgs is struct btrfs_ioctl_vol_args_v2: a descriptor, flags, and a name or
// the id of a subvolume.
type volArgs [4096]byte

const (
	volFlags = 16
	volName  = 56
)

func (a *volArgs) setFD(fd int) { native.PutUint64(a[:], uint64(fd)) } //nolint:gosec // a descriptor is not negative

func (a *volArgs) setName(name string) error {
	if len(name) > 255 || len(name) == 0 {
		return fmt.Errorf("subvolume %.300q: %w", name, unix.ENAMETOOLONG)
	}
	copy(a[volName:], name)
	return nil
}

func (a *volArgs) setID(id uint64) {
	native.PutUint64(a[volFlags:], flagByID)
	native.PutUint64(a[volName:], id)
}

type flagArgs [8]byte

func (a *flagArgs) get() uint64  { return native.Uint64(a[:]) }
func (a *flagArgs) set(f uint64) { native.PutUint64(a[:], f) }

// infoArgs is struct btrfs_ioctl_get_subvol_info_args.
type infoArgs [504]byte

func infoOf(fd int) (a infoArgs, err error) { return a, ioctl(fd, iocInfo, a[:]) }

func (a *infoArgs) id() uint64     { return native.Uint64(a[:]) }
func (a *infoArgs) cloned() uint64 { return native.Uint64(a[352:]) } // the transaction in which it was made

// Trees of the file system, and what is in them.
const (
	rootTree = 1
	lastIno  = max64 - 255

	typeInode   = 1
	typeExtent  = 108
	typeRootRef = 156
)

// A search is struct btrfs_ioctl_search_key: everything between two keys of a
// tree, in the blocks that a transaction not before the least one has written.
type search struct {
	Tree                           uint64
	MinObject, MaxObject           uint64
	MinOffset, MaxOffset           uint64
	MinTransaction, MaxTransaction uint64
	MinType, MaxType               uint32
	Items, _                       uint32
	_                              [4]uint64
}

// An item is struct btrfs_ioctl_search_header, and what follows it.
type item struct {
	Transaction, Object, Offset uint64
	Type, Len                   uint32
	data                        []byte
}

const (
	searchHead = 112
	itemHead   = 32

	// searchBuf has room for the largest item that there can be.
	searchBuf = 128 << 10
)

// each calls fn for what is found, until it says that this is enough. The data
// is good until fn returns.
func (s search) each(fd int, fn func(i item) bool) error {
	b := make([]byte, searchHead+searchBuf)
	for {
		s.Items = max32
		if _, err := binary.Encode(b, native, &s); err != nil {
			return err
		}
		native.PutUint64(b[searchHead-8:], searchBuf)
		if err := ioctl(fd, iocSearch, b); err != nil {
			return err
		}
		if _, err := binary.Decode(b, native, &s); err != nil {
			return err
		}
		if s.Items == 0 {
			return nil
		}
		rest := b[searchHead:]
		var i item
		for range s.Items {
			i = item{
				Transaction: native.Uint64(rest), Object: native.Uint64(rest[8:]), Offset: native.Uint64(rest[16:]),
				Type: native.Uint32(rest[24:]), Len: native.Uint32(rest[28:]),
			}
			rest = rest[itemHead:]
			i.data, rest = rest[:i.Len], rest[i.Len:]
			if !fn(i) {
				return nil
			}
		}
		if !s.after(i) {
			return nil
		}
	}
}

// after makes the search begin after an item, if there can be anything.
func (s *search) after(i item) bool {
	s.MinObject, s.MinType, s.MinOffset = i.Object, i.Type, i.Offset+1
	if s.MinOffset == 0 {
		s.MinType++
	}
	if s.MinType > math.MaxUint8 {
		s.MinType = 0
		s.MinObject++
	}
	return s.MinObject <= s.MaxObject
}

// Of struct btrfs_inode_item and btrfs_file_extent_item, which are in the order
// of bytes of the disk.
const (
	inodeLen   = 160
	extentHead = 21
	extentLen  = 53
)

func inodeTransaction(b []byte) uint64  { return binary.LittleEndian.Uint64(b[8:]) }
func extentTransaction(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// extentSize is what a piece of a file takes on disk: nothing if it is a hole,
// and what it takes compressed if it is.
func extentSize(b []byte) int64 {
	const inline = 0
	if b[20] == inline {
		return int64(len(b) - extentHead)
	}
	if len(b) < extentLen {
		return 0
	}
	start, onDisk, used := binary.LittleEndian.Uint64(b[21:]), binary.LittleEndian.Uint64(b[29:]), binary.LittleEndian.Uint64(b[45:])
	if start == 0 {
		return 0
	}
	return int64(min(onDisk, used)) //nolint:gosec // a file is no longer
}

// handleType is the type of a file handle that names a file and its subvolume.
const handleType = 0x4d

// openID opens the root of a subvolume, wherever it is.
func openID(fd int, id uint64) (int, error) {
	var b bytes.Buffer
	for _, v := range []any{uint64(rootIno), id, uint32(0)} {
		if err := binary.Write(&b, native, v); err != nil {
			return -1, err
		}
	}
	return unix.OpenByHandleAt(fd, unix.NewFileHandle(handleType, b.Bytes()), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
}
