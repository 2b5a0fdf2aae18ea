package event

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Stamp gives e what a bus gives an event that comes without: a time and, in
// the name of whoever took it in, an id. The same event told again has the same
// id, if it has a time of its own.
func (e Event) Stamp(now time.Time, by string) Event {
	if e.Time.IsZero() {
		e.Time = now
	}
	e.Time = e.Time.UTC()
	if e.ID == "" {
		b, _ := json.Marshal(e) // strings, bytes and a time
		sum := sha256.Sum256(b)
		e.ID = by + "/" + hex.EncodeToString(sum[:16])
	}
	return e
}
