package event

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// A Cursor is a place in the bus's stream: that of the event of its sequence.
// What is asked for after a cursor begins with the event behind it.
type Cursor struct {
	Epoch    string
	Sequence uint64
}

// String is the form that [ParseCursor] reads: "<epoch>/<sequence>", in which
// the epoch is escaped.
func (c Cursor) String() string {
	return url.QueryEscape(c.Epoch) + "/" + strconv.FormatUint(c.Sequence, 10)
}

// ParseCursor reads what String makes. Anything else is
// [errdefs.ErrInvalidArgument].
func ParseCursor(s string) (Cursor, error) {
	escaped, digits, _ := strings.Cut(s, "/")
	epoch, err := url.QueryUnescape(escaped)
	if err != nil {
		return Cursor{}, fmt.Errorf("cursor %.100q: %w", s, errdefs.ErrInvalidArgument)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return Cursor{}, fmt.Errorf("cursor %.100q: %w", s, errdefs.ErrInvalidArgument)
	}
	return Cursor{Epoch: epoch, Sequence: n}, nil
}

// A Gap is the error of a reader whose next event is not there: it is no longer
// kept, or the stream is another. It is [errdefs.ErrOutOfRange]. Such a reader
// knows less than it thinks: it lists what it follows anew, and goes on after
// To.
type Gap struct {
	From Cursor // where the reader stood
	To   Cursor // what is kept begins behind it
}

func (g *Gap) Error() string {
	return fmt.Sprintf("events after %s are lost, up to %s: %v", g.From, g.To, errdefs.ErrOutOfRange)
}

// Unwrap makes a gap an error of its kind.
func (g *Gap) Unwrap() error { return errdefs.ErrOutOfRange }
