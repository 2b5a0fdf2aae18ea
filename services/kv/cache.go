package kv

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// A cache holds the values of keys that were read one at a time, so that a
// record that is asked for often costs no transaction. A key leaves it before it
// is written, and none enters while a commit is under way: nobody gets a value
// older than one that somebody else has seen.
type cache struct {
	max int // bytes

	// mu guards the fields below it.
	mu      sync.RWMutex
	values  map[string][]byte
	size    int
	commits uint64 // that began and that ended: odd while one is under way
}

// entryCost is what an entry takes beside its bytes, about.
const entryCost = 64

func costOf(key string, value []byte) int { return len(key) + len(value) + entryCost }

// get also returns what keep wants to know.
func (c *cache) get(key []byte) (value []byte, ok bool, commits uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	value, ok = c.values[string(key)]
	return value, ok, c.commits
}

// keep adds a value that was read when there had been so many commits.
func (c *cache) keep(key, value []byte, commits uint64) {
	if commits%2 == 1 || costOf(string(key), value) > c.max {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if commits != c.commits {
		return
	}
	c.remove(string(key))
	c.size += costOf(string(key), value)
	for other := range c.values {
		if c.size <= c.max {
			break
		}
		c.remove(other) // any: what is wanted comes back
	}
	c.values[string(key)] = value
}

func (c *cache) remove(key string) {
	if value, ok := c.values[key]; ok {
		c.size -= costOf(key, value)
		delete(c.values, key)
	}
}

// begin is before the commit of some writes, and end after it.
func (c *cache) begin(writes map[string]write) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits++
	for key := range writes {
		c.remove(key)
	}
}

func (c *cache) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits++
}

// drop forgets everything, also what is just being read.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits += 2
	c.size = 0
	clear(c.values)
}

// GetJSON reads one key into v as a View would, and remembers its value, up to
// [Options].CacheMax.
func (db *DB) GetJSON(key []byte, v any) error {
	value, ok, commits := db.cache.get(key)
	if !ok {
		if err := db.View(func(tx *Tx) (err error) {
			value, err = tx.Get(key)
			return err
		}); err != nil {
			return err
		}
		db.cache.keep(key, value, commits)
	}
	return readJSON(key, value, v)
}

// readJSON decodes a record: [errdefs.ErrDataLoss] if it is not v's JSON. A v
// that decodes itself is given any bytes, which need not be JSON.
func readJSON(key, value []byte, v any) (err error) {
	if u, ok := v.(json.Unmarshaler); ok {
		err = u.UnmarshalJSON(value)
	} else {
		err = json.Unmarshal(value, v)
	}
	if err != nil {
		return fmt.Errorf("record %q: %w: %w", key, err, errdefs.ErrDataLoss)
	}
	return nil
}
