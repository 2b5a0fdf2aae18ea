package pack

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	// zstdWindow is how far back it looks, in bytes. Twice as far makes a layer
	// half a percent smaller.
	zstdWindow = 4 << 20

	// zstdWorkers are one that looks for what was there before, and one that
	// encodes what the first has found. More would each compress a part of the
	// stream, and keep it in memory: 100 MB for two.
	zstdWorkers = 2
)

// A zstdWriter makes one frame.
type zstdWriter struct{ *zstd.Encoder }

func newZstd(w io.Writer, _ int) (compressor, error) {
	z, err := zstd.NewWriter(w,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(zstdWindow),
		zstd.WithEncoderConcurrency(zstdWorkers))
	if err != nil {
		return nil, err
	}
	return zstdWriter{z}, nil
}

// stop ends the encoder, which may be in the middle.
func (z zstdWriter) stop() { z.Reset(nil) }
