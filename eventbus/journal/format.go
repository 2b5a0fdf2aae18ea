package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// BodyMax is the most bytes of a record's body, and IDMax of its id.
	BodyMax = 1<<20 + 64<<10
	IDMax   = 1 << 12

	magic      = "gantry journal 1"
	headerSize = 64
	epochSize  = 16
	frameSize  = 8  // length and crc
	fixedSize  = 26 // seq, synced, time and the length of the id
	recordMax  = frameSize + fixedSize + IDMax + BodyMax
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Record is something that was appended.
type Record struct {
	Sequence uint64
	Time     time.Time // when it was taken in
	ID       string    // records of one id are the same record
	Body     []byte

	// Value is what the caller of Append makes of it, for [Options.Told]. It
	// is not kept.
	Value any
}

// A header is the beginning of a segment.
type header struct {
	epoch string
	first uint64
	made  time.Time
}

func (h header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, magic...)
	b = append(b, h.epoch...)
	b = binary.LittleEndian.AppendUint64(b, h.first)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.made.UnixNano()))
	b = append(b, make([]byte, headerSize-4-len(b))...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeHeader(b []byte) (header, error) {
	if len(b) != headerSize || !bytes.HasPrefix(b, []byte(magic)) ||
		binary.LittleEndian.Uint32(b[headerSize-4:]) != crc32.Checksum(b[:headerSize-4], castagnoli) {
		return header{}, fmt.Errorf("no segment of a journal: %w", errdefs.ErrDataLoss)
	}
	b = b[len(magic):]
	return header{
		epoch: string(b[:epochSize]),
		first: binary.LittleEndian.Uint64(b[epochSize:]),
		made:  time.Unix(0, int64(binary.LittleEndian.Uint64(b[epochSize+8:]))),
	}, nil
}

// appendRecord encodes r behind b.
func appendRecord(b []byte, r Record, synced uint64) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(fixedSize+len(r.ID)+len(r.Body)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, r.Sequence)
	b = binary.LittleEndian.AppendUint64(b, synced)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Time.UnixNano()))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.ID)))
	b = append(b, r.ID...)
	b = append(b, r.Body...)
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(b[start+frameSize:], castagnoli))
	return b
}

// A found is a record as it is in a segment.
type found struct {
	Record        // its body is a part of what was decoded
	synced uint64 // when it was written
	size   int    // bytes that it takes
}

// What decode says of bytes that begin with no whole record.
const (
	whole   = iota
	short   // more bytes may make one
	ended   // there is no more
	damaged // they never will
)

// decode reads the record that b begins with.
func decode(b []byte) (found, int) {
	if len(b) < frameSize {
		return found{}, short
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n == 0 {
		return found{}, ended
	}
	if n < fixedSize || n > recordMax-frameSize {
		return found{}, damaged
	}
	if len(b) < frameSize+n {
		return found{}, short
	}
	rest := b[frameSize : frameSize+n]
	id := int(binary.LittleEndian.Uint16(rest[24:]))
	if id > n-fixedSize || binary.LittleEndian.Uint32(b[4:]) != crc32.Checksum(rest, castagnoli) {
		return found{}, damaged
	}
	return found{
		Record: Record{
			Sequence: binary.LittleEndian.Uint64(rest),
			Time:     time.Unix(0, int64(binary.LittleEndian.Uint64(rest[16:]))),
			ID:       string(rest[fixedSize : fixedSize+id]),
			Body:     rest[fixedSize+id:],
		},
		synced: binary.LittleEndian.Uint64(rest[8:]),
		size:   frameSize + n,
	}, whole
}

// seek returns where in b the first record past a sequence begins, from 1 on, or
// -1. b begins with damage.
func seek(b []byte, past uint64) int {
	for i := 1; i+frameSize+fixedSize <= len(b); i++ {
		n := int(binary.LittleEndian.Uint32(b[i:]))
		if n < fixedSize || n > recordMax-frameSize || i+frameSize+n > len(b) {
			continue
		}
		// A checksum of a MiB at each byte would take long. Most bytes are no
		// sequence that can be.
		if s := binary.LittleEndian.Uint64(b[i+frameSize:]); s <= past || s-past > 1<<32 {
			continue
		}
		if _, state := decode(b[i:]); state == whole {
			return i
		}
	}
	return -1
}
