package difftest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Entry is a file in an archive. Its mode, time and type have defaults.
type Entry struct {
	tar.Header
	Body string
}

// File, Dir, Symlink, Link and Whiteout are the entries that most layers are
// made of.
func File(name, body string) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, Body: body}
}

// Dir is a directory.
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}

// Symlink is a symbolic link to target.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

// Link is another name of the file called target.
func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}}
}

// Node is a device or a pipe.
func Node(name string, kind byte, major, minor int64) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

// Epoch is the time of every entry that has none.
var Epoch = time.Unix(1_500_000_000, 0)

// Tar returns the archive of entries.
func Tar(entries ...Entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Body))
		if h.ModTime.IsZero() {
			h.ModTime = Epoch
		}
		must(w.WriteHeader(&h))
		_, err := io.WriteString(w, e.Body)
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}

// Names lists the entries of an archive that [Tar] could have made.
func Names(archive []byte) (names []string) {
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		must(err)
		names = append(names, h.Name)
	}
}

// must is for what fails only if a test is written wrongly.
func must(err error) {
	if err != nil {
		panic("difftest: " + err.Error())
	}
}

// Gzip compresses b.
func Gzip(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(err)
	must(w.Close())
	return out.Bytes()
}

// Zstd wraps b in a zstd frame without compressing it.
func Zstd(b []byte) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58} // no checksum, a window of 2 MiB
	for {
		n := min(len(b), 128<<10)
		last := uint32(0)
		if n == len(b) {
			last = 1
		}
		size := binary.LittleEndian.AppendUint32(nil, uint32(n)<<3|last)
		out = append(append(out, size[:3]...), b[:n]...)
		if b = b[n:]; last == 1 {
			return out
		}
	}
}

// Wide is a layer of one file of n zeros, not more than 8 GiB, in a few bytes of
// zstd that want a window of 2^log bytes. It also returns the digest of the archive.
func Wide(log int, n int64) (layer []byte, diffID digest.Digest) {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, byte(log-10) << 3}
	block := func(kind, size int, b []byte) {
		head := binary.LittleEndian.AppendUint32(nil, uint32(size)<<3|uint32(kind))
		out = append(append(out, head[:3]...), b...)
	}
	const raw, repeated, last = 0, 1 << 1, 1
	head := rawHeader("zeros", tar.TypeReg, field{atSize, fmt.Sprintf("%011o\x00", n)})
	sum := digest.Canonical.Digester()
	hashed := func(b []byte) { _, err := sum.Hash().Write(b); must(err) }
	block(raw, len(head), head)
	hashed(head)
	zero := make([]byte, 128<<10)
	for rest := n + blockSize - 1 - (n+blockSize-1)%blockSize; rest > 0; {
		part := min(rest, int64(len(zero)))
		block(repeated, int(part), zero[:1])
		hashed(zero[:part])
		rest -= part
	}
	block(repeated|last, 2*blockSize, zero[:1])
	hashed(zero[:2*blockSize])
	return out, sum.Digest()
}

// A field is a part of a header block, at an offset.
type field struct {
	at    int
	value string
}

// Offsets in a header block.
const (
	atName     = 0
	atUID      = 108
	atSize     = 124
	atTime     = 136
	atChecksum = 148
	atType     = 156
	atLink     = 157
	blockSize  = 512
)

// rawHeader returns the header block of an empty file with fields in it that no
// honest writer writes, and a checksum that is right.
func rawHeader(name string, kind byte, fields ...field) []byte {
	b := make([]byte, blockSize)
	copy(b[atName:], name)
	copy(b[100:], "0000644\x00")
	copy(b[atUID:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[atSize:], "00000000000\x00")
	copy(b[atTime:], "13132027400\x00")
	b[atType] = kind
	copy(b[257:], "ustar\x0000")
	for _, f := range fields {
		copy(b[f.at:], f.value)
	}
	copy(b[atChecksum:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[atChecksum:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// pad fills b up to a whole block.
func pad(b []byte) []byte {
	return append(b, make([]byte, (blockSize-len(b)%blockSize)%blockSize)...)
}

// pax returns a header of PAX records that may be anything.
func pax(records string) []byte {
	h := rawHeader("pax", 'x', field{atSize, fmt.Sprintf("%011o\x00", len(records))})
	return append(h, pad([]byte(records))...)
}

// record is one record as the format wants it.
func record(key, value string) string {
	n := len(key) + len(value) + 3
	for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
		n = len(fmt.Sprint(n)) + len(key) + len(value) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// raw joins blocks and ends the archive.
func raw(blocks ...[]byte) []byte {
	return append(bytes.Join(blocks, nil), make([]byte, 2*blockSize)...)
}
