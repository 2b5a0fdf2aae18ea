package kv

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// memtable is how much a log takes before Badger begins another.
const memtable = 2 << 20

// A reserved is the log that Badger writes to, once all its blocks are its own:
// then what is written to it needs no free disk, until it is full.
type reserved struct {
	name string // of the log, or empty
	used int64  // bytes
}

// reserve gives the newest log its blocks, unless it has them.
func (r *reserved) reserve(dir string) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil || len(logs) == 0 {
		return
	}
	newest := logs[0]
	for _, l := range logs {
		// Numbers have five digits, or more.
		if len(l) > len(newest) || len(l) == len(newest) && l > newest {
			newest = l
		}
	}
	if r.name == newest {
		return
	}
	*r = reserved{}
	f, err := os.OpenFile(newest, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, fi.Size()) != nil {
		return
	}
	b := make([]byte, fi.Size())
	if _, err := f.ReadAt(b, 0); err == nil {
		*r = reserved{name: newest, used: int64(len(bytes.TrimRight(b, "\x00")))}
	}
}

func (r *reserved) wrote(s size) { r.used += s.bytes + 200 }

// fits says whether s can be written without another log. In memory a row takes
// up to three times what it does in the log, and Badger goes by either.
func (r *reserved) fits(s size) bool {
	return r.name != "" && 3*(r.used+s.bytes) < memtable
}

// takes says whether the writes fit, and none of them has a file of its own.
func (r *reserved) takes(writes map[string]write, s size) bool {
	for _, w := range writes {
		if len(w.value) >= inline {
			return false
		}
	}
	return r.fits(s)
}
