package pack

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

// zstdWindow is how far back it looks, in bytes, and decides how much of the
// stream is compressed at once by one core, four times that.
const zstdWindow = 1 << 20

// A zstdWriter makes one frame, of pieces that are compressed at the same time.
type zstdWriter struct{ *zstd.Encoder }

func newZstd(w io.Writer, workers int) (compressor, error) {
	z, err := zstd.NewWriter(w,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(zstdWindow),
		zstd.WithConcurrentBlocks(true),
		// One would not be cut into pieces, and would make other bytes.
		zstd.WithEncoderConcurrency(max(workers, 2)))
	if err != nil {
		return nil, err
	}
	return zstdWriter{z}, nil
}

// stop ends the encoder, which may be in the middle.
func (z zstdWriter) stop() { z.Reset(nil) }
