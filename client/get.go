package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

// receiveSize is how many bytes are asked for at a time.
const receiveSize = 4 << 20

// GetOptions say how a blob is got.
type GetOptions struct {
	// Progress, if it is not nil, is told how far it is.
	Progress func(Progress)
}

// Get copies the bytes of a blob to w, makes sure that they are what d says, and
// returns how many there are. It waits for a daemon that restarts and goes on
// where it was.
//
// A blob that the namespace does not have is [errdefs.ErrNotFound], a digest
// that does not parse [errdefs.ErrInvalidArgument], and a daemon that stays away
// [errdefs.ErrUnavailable]. Other bytes than d says are [errdefs.ErrDataLoss],
// which shows only at the end: w has got them by then, and whoever may not have
// them uses [Namespace.GetFile]. What w says is returned as it is.
func (n *Namespace) Get(ctx context.Context, d digest.Digest, w io.Writer, o GetOptions) (int64, error) {
	if err := content.CheckDigest(d); err != nil {
		return 0, err
	}
	b := &blobReader{ctx: ctx, blobs: n.c.Content.In(n.scope("")), digest: d}
	b.waiting = func() { teller(o.Progress).tell(StageWait, b.offset, b.size) }
	defer b.close()
	hash := content.NewHash(d.Algorithm())
	for {
		part, err := b.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return b.offset, err
		}
		hash.Write(part)
		if _, err := w.Write(part); err != nil {
			return b.offset, err
		}
		teller(o.Progress).tell(StageReceive, b.offset, b.size)
		if err != nil {
			break
		}
	}
	if got := digest.NewDigest(d.Algorithm(), hash); got != d {
		return b.offset, fmt.Errorf("blob %s is corrupt: its %d bytes are %s: %w", d, b.offset, got, errdefs.ErrDataLoss)
	}
	return b.offset, nil
}

// A blobReader reads a blob from the first byte to the last, through restarts
// of the daemon.
type blobReader struct {
	ctx     context.Context
	blobs   content.Blobs
	digest  digest.Digest
	r       content.Reader // nil where it has to be opened
	buf     []byte
	offset  int64
	size    int64  // once it was opened
	waiting func() // is called before it is tried again
}

// next returns the next bytes, which are good until it is called again, with
// [io.EOF] if they are the last, or there are none.
func (b *blobReader) next() ([]byte, error) {
	var n int
	err := again(b.ctx, 0, func(ctx context.Context, repeated bool) (err error) {
		if repeated {
			b.waiting()
		}
		if b.r == nil {
			if b.r, err = b.blobs.Open(ctx, b.digest); err != nil {
				b.r = nil
				return err
			}
			b.size = b.r.Size()
		}
		if b.buf == nil {
			b.buf = make([]byte, max(1, min(b.size, receiveSize)))
		}
		n, err = b.r.ReadAt(b.buf, b.offset)
		if errdefs.IsUnavailable(err) {
			b.close()
		}
		return err
	})
	b.offset += int64(n)
	return b.buf[:n], err
}

func (b *blobReader) close() {
	if b.r != nil {
		b.r.Close()
		b.r = nil
	}
}

// GetFile is Get to a file, which appears, or is replaced, once it is whole and
// its bytes are right. On an error, what was there is as it was, and nothing
// else is left. What is there and is no regular file, as a device or a pipe, is
// written to as by Get.
func (n *Namespace) GetFile(ctx context.Context, d digest.Digest, name string, o GetOptions) (int64, error) {
	// The file that a link leads to is replaced, and not the link.
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	old, err := os.Stat(name)
	switch {
	case err == nil && !old.Mode().IsRegular():
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return 0, err
		}
		size, err := n.Get(ctx, d, f, o)
		return size, errors.Join(err, f.Close())
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	beside := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+"."+rand.Text())
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 0, err
	}
	size, err := n.Get(ctx, d, f, o)
	if err == nil && old != nil {
		err = f.Chmod(old.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(beside, name)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(beside))
	}
	return size, err
}
