package kv

import (
	"fmt"

	"github.com/containerd/errdefs"
)

const (
	keyMax   = 65_000
	valueMax = 15 << 20 // below the size of a value log file
	inline   = 300 << 10
)

// A size is how much of a Badger transaction some writes take.
type size struct{ keys, bytes int64 }

// sizeOf counts as Badger does, or a little more.
func sizeOf(writes map[string]write) size {
	var s size
	for k, w := range writes {
		s.keys++
		s.bytes += int64(len(k)) + 32
		if len(w.value) < inline {
			s.bytes += int64(len(w.value))
		}
	}
	return s
}

func (s size) add(o size) size { return size{s.keys + o.keys, s.bytes + o.bytes} }

func (s size) within(limit size) bool { return s.keys <= limit.keys && s.bytes <= limit.bytes }

func (s size) check(limit size) error {
	if s.within(limit) {
		return nil
	}
	return fmt.Errorf("transaction of %d keys and %d bytes is more than one commit takes (%d, %d): %w",
		s.keys, s.bytes, limit.keys, limit.bytes, errdefs.ErrInvalidArgument)
}

// limit is what fits into one transaction, with room for its end mark.
func (db *DB) limit() size {
	return size{keys: db.badger.MaxBatchCount() - 8, bytes: db.badger.MaxBatchSize() - 1024}
}
