package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"golang.org/x/sys/unix"
)

// A Sum is of what a tree looks like without its files being read: paths, types,
// modes, owners, sizes, devices, targets of links, and the times of files. It is
// the same whatever the order in which a file system lists a directory.
type Sum [4]uint64

// String is the sum as it is kept.
func (s Sum) String() string {
	b := make([]byte, 0, 8*len(s))
	for _, n := range s {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return "v1:" + hex.EncodeToString(b)
}

// add adds a hash as one number of 256 bits: what is added twice counts twice.
func (s *Sum) add(h [sha256.Size]byte) {
	carry := uint64(0)
	for i := len(s) - 1; i >= 0; i-- {
		s[i], carry = bits.Add64(s[i], binary.BigEndian.Uint64(h[8*i:]), carry)
	}
}

// SumOf returns the sum of what is below root. The mode and owner of root itself
// are part of it.
func SumOf(ctx context.Context, root int) (Sum, error) {
	var s Sum
	var line []byte
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return s, err
	}
	s.add(sha256.Sum256(appendStat(nil, &st)))
	target := make([]byte, pathMax+1)
	err := Walk(ctx, root, func(e *Entry) error {
		line = appendStat(line[:0], &e.Stat)
		if e.Is(unix.S_IFLNK) {
			n, err := unix.Readlinkat(e.Dir, e.Name, target)
			if err != nil {
				return err
			}
			line = append(line, target[:n]...)
		}
		line = append(line, 0)
		line = append(line, e.Path()...)
		s.add(sha256.Sum256(line))
		return nil
	})
	return s, err
}

// appendStat appends what is compared of an entry, in a form of one length.
func appendStat(b []byte, st *unix.Stat_t) []byte {
	size, sec, nsec := int64(0), int64(0), int64(0)
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		size, sec, nsec = st.Size, int64(st.Mtim.Sec), int64(st.Mtim.Nsec) //nolint:unconvert // 32 bits elsewhere
	}
	rdev := uint64(0)
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		rdev = uint64(st.Rdev) //nolint:unconvert // 32 bits elsewhere
	}
	for _, n := range []uint64{uint64(st.Mode), uint64(st.Uid), uint64(st.Gid), rdev, uint64(size), uint64(sec), uint64(nsec)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}
