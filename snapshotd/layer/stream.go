package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/snapshotd/inflate"
)

const (
	// windowMax is the largest zstd window, in bytes. It is what a decoder
	// keeps in memory; zstd's own levels up to 19 use 8 MiB.
	windowMax = 32 << 20

	// The stream is decompressed aheadMax buffers ahead of its use.
	aheadMax  = 4
	aheadSize = 256 << 10
)

// A stream is the uncompressed bytes of a layer. One goroutine reads, checks
// and decompresses; whoever reads the stream hashes what it gets.
type stream struct {
	ctx  context.Context
	desc ocispec.Descriptor
	blob *checked

	chunks  chan chunk
	free    chan []byte
	current []byte
	whole   []byte // the buffer that current is the rest of
	err     error  // after the last chunk

	hash hash.Hash
	size int64

	cancel context.CancelFunc
	ended  chan struct{}
}

type chunk struct {
	b   []byte
	err error
}

// newStream opens the blob and begins to decompress it. The caller stops it.
func newStream(ctx context.Context, desc ocispec.Descriptor, c compression, open func(context.Context) (io.ReadCloser, error)) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, err := open(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{
		ctx:    ctx,
		desc:   desc,
		blob:   &checked{r: r, hash: desc.Digest.Algorithm().Hash()},
		chunks: make(chan chunk, aheadMax),
		free:   make(chan []byte, aheadMax),
		hash:   sha256.New(),
		cancel: cancel,
		ended:  make(chan struct{}),
	}
	for range aheadMax {
		s.free <- make([]byte, aheadSize)
	}
	go func() {
		defer close(s.ended)
		defer r.Close()
		defer close(s.chunks)
		s.decompress(c)
	}()
	return s, nil
}

// stop ends the goroutine and waits for it.
func (s *stream) stop() {
	s.cancel()
	<-s.ended
}

// decompress fills chunks, the last of which has an error.
func (s *stream) decompress(c compression) {
	r, done, err := decoder(s.blob, c)
	if err == nil {
		defer done()
	}
	for {
		var b []byte
		select {
		case b = <-s.free:
		case <-s.ctx.Done():
			return
		}
		n := 0
		for err == nil && n < len(b) {
			var m int
			m, err = r.Read(b[n:])
			n += m
		}
		if err != nil {
			err = s.explain(err)
		}
		select {
		case s.chunks <- chunk{b[:n], err}:
		case <-s.ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// decoder returns the uncompressed bytes of r.
func decoder(r io.Reader, c compression) (_ io.Reader, done func(), _ error) {
	// Each read of the blob may be a call to another daemon.
	br := bufio.NewReaderSize(r, 1<<20)
	if c == plain {
		return br, func() {}, nil
	}
	start, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case isGzip(start):
		return inflate.NewReader(br), func() {}, nil
	case isZstd(start):
		z, err := zstd.NewReader(br,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(windowMax))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// explain tells errors of the blob's reader from bytes that do not decompress.
func (s *stream) explain(err error) error {
	switch {
	case s.blob.err != nil:
		return fmt.Errorf("layer %s: %w", s.desc.Digest, s.blob.err)
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return fmt.Errorf("layer %s: %w: %w", s.desc.Digest, err, errdefs.ErrInvalidArgument)
}

// Read implements io.Reader.
func (s *stream) Read(b []byte) (int, error) {
	for len(s.current) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if s.whole != nil {
			s.free <- s.whole[:cap(s.whole)] // has room for every buffer
			s.whole = nil
		}
		c, ok := <-s.chunks
		if !ok {
			s.err = s.ctx.Err()
			continue
		}
		s.current, s.whole, s.err = c.b, c.b, c.err
		s.hash.Write(c.b)
	}
	n := copy(b, s.current)
	s.current = s.current[n:]
	s.size += int64(n)
	return n, nil
}

// finish reads what follows the archive, and checks that the blob was what its
// descriptor says.
func (s *stream) finish() error {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return err
	}
	s.stop()
	if got := s.blob.n; s.desc.Size != 0 && got != s.desc.Size {
		return fmt.Errorf("layer %s: %d bytes, want %d: %w", s.desc.Digest, got, s.desc.Size, errdefs.ErrInvalidArgument)
	}
	if got := digest.NewDigest(s.desc.Digest.Algorithm(), s.blob.hash); got != s.desc.Digest {
		return fmt.Errorf("layer %s: the bytes hash to %s: %w", s.desc.Digest, got, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *stream) diffID() digest.Digest { return digest.NewDigest(digest.SHA256, s.hash) }

// A checked reader hashes and counts, and remembers why it failed.
type checked struct {
	r    io.Reader
	hash hash.Hash
	n    int64
	err  error
}

func (c *checked) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.hash.Write(b[:n])
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}
