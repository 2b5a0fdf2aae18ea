package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/table"
)

// checkFiles reads what Badger is going to map into memory, with bounds: there,
// a length that is wrong ends the process, in a goroutine that is not ours.
func checkFiles(o *Options) error {
	if err := errors.Join(checkRegistry(o.Dir), checkLogs(o.Dir)); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(o.Dir, "MANIFEST"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is new
	}
	if err != nil {
		return err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, 0, settings(o))
	if err != nil {
		return fmt.Errorf("MANIFEST: %w: %w", err, errdefs.ErrDataLoss)
	}
	for id := range m.Tables {
		name := table.NewFilename(id, o.Dir)
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("table %s is gone: %w", filepath.Base(name), errdefs.ErrDataLoss)
		}
		if err == nil {
			err = checkTable(b)
		}
		if err != nil {
			return fmt.Errorf("table %s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

// registry is how a registry of keys begins that are for encryption, after its
// first 16 bytes. Ours never has a key, and can be made anew.
const registry, registrySize = "Hello Badger", 28

func checkRegistry(dir string) error {
	name := filepath.Join(dir, "KEYREGISTRY")
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == registrySize && string(b[16:]) == registry {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(name)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkTable reads a table to its end. It is blocks, an index of them, and what
// the index hashes to; a block ends with what it hashes to.
func checkTable(b []byte) error {
	rest, sum, err := tail(b)
	if err != nil {
		return err
	}
	if len(rest) < 4 {
		return fmt.Errorf("it has no index: %w", errdefs.ErrDataLoss)
	}
	size := uint64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	rest = rest[:len(rest)-4]
	if size == 0 || size > uint64(len(rest)) {
		return fmt.Errorf("its index has %d bytes: %w", size, errdefs.ErrDataLoss)
	}
	blocks, index := rest[:uint64(len(rest))-size], rest[uint64(len(rest))-size:]
	if crc32.Checksum(index, castagnoli) != sum {
		return fmt.Errorf("its index is damaged: %w", errdefs.ErrDataLoss)
	}
	x := fb.GetRootAsTableIndex(index, 0)
	var at fb.BlockOffset
	for i := range x.OffsetsLength() {
		if !x.Offsets(&at, i) || uint64(at.Offset())+uint64(at.Len()) > uint64(len(blocks)) {
			return fmt.Errorf("block %d is not in it: %w", i, errdefs.ErrDataLoss)
		}
		block, sum, err := tail(blocks[at.Offset() : at.Offset()+at.Len()])
		if err == nil && crc32.Checksum(block, castagnoli) != sum {
			err = fmt.Errorf("it is damaged: %w", errdefs.ErrDataLoss)
		}
		if err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
	}
	return nil
}

// tail takes the checksum off the end of b: a message with the sum in field 2,
// and its length.
func tail(b []byte) (rest []byte, sum uint32, err error) {
	bad := fmt.Errorf("its checksum is damaged: %w", errdefs.ErrDataLoss)
	if len(b) < 4 {
		return nil, 0, bad
	}
	n := uint64(binary.BigEndian.Uint32(b[len(b)-4:]))
	b = b[:len(b)-4]
	if n > uint64(len(b)) {
		return nil, 0, bad
	}
	b, message := b[:uint64(len(b))-n], b[uint64(len(b))-n:]
	if len(message) == 0 {
		return b, 0, nil // a sum of 0 is left out
	}
	v, read := binary.Uvarint(message[1:])
	if message[0] != 2<<3 || read != len(message)-1 || v > 1<<32-1 {
		return nil, 0, bad
	}
	return b, uint32(v), nil
}
