// Package fsck is the contract of a daemon that can say whether what it keeps
// is whole, and put right what is not.
package fsck

import (
	"context"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
)

// Options say what a check looks at and what it may do.
type Options struct {
	// Deep reads the bytes of every object too, and not the records only.
	Deep bool

	// Repair puts right what was found; without it nothing is changed.
	Repair bool

	// Rate is how many bytes a second are read at most; 0 is no limit.
	Rate int64

	// Only are the ids of the objects to look at; all, if there are none. Of
	// an object that is named the bytes are read, and of the records those
	// that are about it.
	Only []string
}

const (
	rateMin = 1 << 10
	onlyMax = 10_000
)

// Check is [errdefs.ErrInvalidArgument] for options that make no sense.
func (o Options) Check() error {
	if o.Rate < 0 || o.Rate > 0 && o.Rate < rateMin {
		return fmt.Errorf("rate of %d bytes a second is less than %d: %w", o.Rate, rateMin, errdefs.ErrInvalidArgument)
	}
	if len(o.Only) > onlyMax {
		return fmt.Errorf("%d objects are more than %d: %w", len(o.Only), onlyMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// A Severity is how bad a finding is.
type Severity string

const (
	Note  Severity = "note"  // nobody can have noticed
	Waste Severity = "waste" // takes room and serves nobody
	Loss  Severity = "loss"  // somebody's object is gone or wrong
)

// A Ref is somebody who counts on an object.
type Ref struct {
	Namespace string
	Kind      string // what refers: "record", "label" or "lease"
	ID        string // of the lease, or of the object that has the label
}

// A Finding is one thing that is not as it has to be.
type Finding struct {
	Severity Severity
	What     string // one word for the kind of thing, such as "corrupt"
	ID       string // of the object, if it is about one
	Where    string // the file or the record
	Why      string // for people
	Done     string // what was done about it, or empty
	Refs     []Ref  // who counts on the object; at most RefsMax
}

// RefsMax is how many are named that count on one object.
const RefsMax = 100

// A Progress is how far a check is. A total is 0 as long as it is not known.
type Progress struct {
	Records      int64 // looked at
	Objects      int64 // whose bytes were read
	ObjectsTotal int64
	Bytes        int64
	BytesTotal   int64
}

// An Item is what a check has to say next: a finding, or that it goes on.
type Item struct {
	Finding  *Finding // nil, if it only goes on
	Progress Progress
}

// A Checker is a daemon that keeps something.
type Checker interface {
	// Check looks at everything and yields what it finds, and how far it is at
	// least every few seconds; the last item says how far it came. It holds up
	// nobody who uses the store meanwhile. An error is yielded last:
	// [errdefs.ErrInvalidArgument] for options that fail [Options.Check] or
	// name an object in a way that none can be named, [errdefs.ErrNotFound] if
	// an object that was named is not there.
	//
	// With [Options.Repair], an object whose bytes are wrong is made again, if the
	// daemon can. Else it is absent from then on for everybody, until somebody
	// writes it again; or it stays, where those who use it would lose more, and
	// nothing is said to be done.
	Check(ctx context.Context, o Options) iter.Seq2[Item, error]
}
