package pack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/changes"
)

const (
	whiteoutPrefix = ".wh."

	// xattrPrefix is how archives spell extended attributes.
	xattrPrefix = "SCHILY.xattr."

	copySize = 128 << 10

	// sizeMax is how long the contents in a layer are at most, in bytes, holes
	// included: a file may be said to be of exabytes.
	sizeMax = 1 << 40
)

// types are what archives call the types of files.
var types = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg,
	unix.S_IFDIR: tar.TypeDir,
	unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar,
	unix.S_IFBLK: tar.TypeBlock,
	unix.S_IFIFO: tar.TypeFifo,
}

// archive writes what differs between trees as a tar stream.
func archive(ctx context.Context, w io.Writer, trees changes.Trees, latest *time.Time) error {
	a := archiver{ctx: ctx, tar: tar.NewWriter(w), latest: latest, buf: make([]byte, copySize)}
	if err := changes.Walk(ctx, trees, a.add); err != nil {
		return err
	}
	return a.tar.Close()
}

type archiver struct {
	ctx    context.Context
	tar    *tar.Writer
	latest *time.Time
	buf    []byte
	size   int64 // of the contents so far
}

func (a *archiver) add(c *changes.Change) error {
	hdr, err := a.header(c)
	if err != nil {
		return err
	}
	if hdr.Size > sizeMax-a.size {
		return fmt.Errorf("a layer of more than %d GiB: %w", sizeMax>>30, errdefs.ErrResourceExhausted)
	}
	a.size += hdr.Size
	if err := a.tar.WriteHeader(hdr); err != nil {
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
		return err
	}
	if c.File == nil {
		return nil
	}
	return a.body(c.File, hdr.Size)
}

func (a *archiver) header(c *changes.Change) (*tar.Header, error) {
	if c.Deleted {
		dir, base := path.Split(c.Path)
		return &tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}, nil
	}
	st := &c.Stat
	hdr := &tar.Header{
		Name: c.Path, Linkname: c.Target,
		Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
		Format:  tar.FormatPAX, // or the time would be without fractions
	}
	if a.latest != nil && hdr.ModTime.After(*a.latest) {
		hdr.ModTime = *a.latest
	}
	// Also of a link: there are tools that set the owner again with each name,
	// by which a file loses its capabilities.
	for _, x := range c.Attributes {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = make(map[string]string)
		}
		hdr.PAXRecords[xattrPrefix+x.Name] = x.Value
	}
	if c.Link != "" {
		hdr.Typeflag, hdr.Linkname = tar.TypeLink, c.Link
		return hdr, nil
	}
	var ok bool
	if hdr.Typeflag, ok = types[st.Mode&unix.S_IFMT]; !ok {
		return nil, fmt.Errorf("file of type %o: %w", st.Mode&unix.S_IFMT, errdefs.ErrFailedPrecondition)
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		hdr.Size = st.Size
	case tar.TypeDir:
		if hdr.Name == "" {
			hdr.Name = "."
		}
		hdr.Name += "/"
	case tar.TypeChar, tar.TypeBlock:
		dev := uint64(st.Rdev) //nolint:unconvert // 32 bits elsewhere
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(dev)), int64(unix.Minor(dev))
	}
	return hdr, nil
}

// body copies the contents of a file, which must not end before its time.
func (a *archiver) body(r io.Reader, size int64) error {
	for size > 0 {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		b := a.buf[:min(size, copySize)]
		if _, err := io.ReadFull(r, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("file became shorter while it was read: %w", errdefs.ErrAborted)
		} else if err != nil {
			return err
		}
		if _, err := a.tar.Write(b); err != nil {
			return err
		}
		size -= int64(len(b))
	}
	return nil
}
