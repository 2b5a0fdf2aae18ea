package kv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
)

// checkLogs reads the logs that Badger is about to replay. It replays a log up
// to the first entry that is not whole, and cuts off the rest: rightly, if that
// is a transaction whose commit never returned, of which there is one at most.
func checkLogs(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := checkLog(b); err != nil {
			return fmt.Errorf("log %s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

const (
	logHeader = 20 // bytes before the first entry
	endOfTxn  = 1 << 7
)

// An entry of a log is its kind, a byte for the user, the lengths of key and
// value, when it expires, the key, the value, and what all that hashes to.
type entry struct {
	kind  byte
	value []byte
	size  int
}

// readEntry returns false for what is not a whole entry.
func readEntry(b []byte) (e entry, ok bool) {
	if len(b) < 2 {
		return e, false
	}
	var n [3]uint64 // key, value, expiry
	at := 2
	for i := range n {
		v, read := binary.Uvarint(b[at:])
		if read <= 0 {
			return e, false
		}
		n[i], at = v, at+read
	}
	if n[0] == 0 || n[0] > 1<<16 || n[1] > uint64(len(b)) || uint64(at)+n[0]+n[1]+crc32.Size > uint64(len(b)) {
		return e, false
	}
	end := at + int(n[0]+n[1])
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return e, false
	}
	return entry{kind: b[0], value: b[at+int(n[0]) : end], size: end + crc32.Size}, true
}

// checkLog is [errdefs.ErrDataLoss] if more than one transaction ends behind the
// first entry that is not whole.
func checkLog(b []byte) error {
	// What was not written to yet is zeros; four may be the end of an entry.
	b = b[:min(len(bytes.TrimRight(b, "\x00"))+crc32.Size, len(b))]
	at := logHeader
	for at < len(b) {
		e, ok := readEntry(b[at:])
		if !ok {
			break
		}
		at += e.size
	}
	broken := at
	var last string
	for ends := 0; at < len(b); {
		e, ok := readEntry(b[at:])
		if !ok {
			at++
			continue
		}
		at += e.size
		if e.kind&endOfTxn == 0 || string(e.value) == last {
			continue
		}
		if _, err := strconv.ParseUint(string(e.value), 10, 64); err != nil {
			continue
		}
		last = string(e.value)
		if ends++; ends > 1 {
			return fmt.Errorf("it is damaged at byte %d, and transactions follow: %w", broken, errdefs.ErrDataLoss)
		}
	}
	return nil
}
