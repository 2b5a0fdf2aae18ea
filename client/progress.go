package client

import (
	"io"

	"github.com/gantryd/gantry/services/unpack"
)

// A Progress is how far something is that takes long. Functions that are told
// of it are called by the goroutine that does the work, between its steps: they
// return soon.
type Progress struct {
	Stage Stage
	Done  int64 // bytes
	Total int64 // bytes, 0 if unknown

	// Layers are those of an image that is being unpacked, each by itself. One
	// whose name is empty was not told of yet.
	Layers []unpack.Progress
}

// A Stage is what is being done, in a word for people.
type Stage string

// The stages. Where more than one comes, Done and Total begin anew with each.
const (
	StageHash    Stage = "hashing"    // a file is read for its digest
	StageSend    Stage = "sending"    // to the content store
	StageCommit  Stage = "committing" // what was sent is made durable
	StageReceive Stage = "receiving"  // from the content store
	StageUnpack  Stage = "unpacking"  // layers; the bytes are those that are packed

	// StageWait comes before another or in the middle of it, which it does not
	// begin anew: for a daemon that restarts, or for other writers of the same
	// blob.
	StageWait Stage = "waiting"
)

// A teller is told of progress, unless it is nil.
type teller func(Progress)

func (t teller) tell(s Stage, done, total int64) {
	if t != nil {
		t(Progress{Stage: s, Done: done, Total: total})
	}
}

// A toldReader tells how much was read.
type toldReader struct {
	r    io.Reader
	t    teller
	read int64
}

func (r *toldReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.read += int64(n)
	r.t.tell(StageSend, r.read, 0)
	return n, err
}
