package contentd

import (
	"encoding"
	"hash"
	"io"
)

const (
	// besideMin is how many bytes are hashed beside being written: fewer are
	// done before another goroutine has begun.
	besideMin = 64 << 10

	// flushEvery is how many bytes are handed to the disk at once, before
	// anybody waits for them: what is left for the sync at the end is short.
	flushEvery = 8 << 20
)

// append writes p at the end of the file and adds it to the hash.
func (w *writer) append(p []byte) (int, error) {
	w.dirty = true
	n, err := writeAndHash(w.file, w.status.Offset, w.hash, p)
	w.moved(int64(n))
	if ahead := w.status.Offset - w.flushed; ahead >= flushEvery {
		w.file.StartSync(w.flushed, ahead)
		w.flushed = w.status.Offset
	}
	return n, kind(err)
}

// writeAndHash does both at the same time, and returns when both are done. What
// could not be written is not in the hash.
func writeAndHash(f io.WriterAt, off int64, h hash.Hash, p []byte) (int, error) {
	if len(p) < besideMin {
		n, err := f.WriteAt(p, off)
		h.Write(p[:n])
		return n, err
	}
	before, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return 0, err
	}
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		h.Write(p)
	}()
	n, err := f.WriteAt(p, off)
	<-hashed
	if n == len(p) {
		return n, err
	}
	if e := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(before); e != nil {
		panic(e) // it wrote that itself
	}
	h.Write(p[:n])
	return n, err
}
