package eventnats

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/ident"
)

// Events are read by asking: a request on ReadSubject, whose body is a Read as
// JSON, is answered by messages to its reply subject. Each is an event as
// toMessage makes it, with its subject and its place in headers; the last says
// in headerStatus how it ended, and in headerCursor where to ask again. Every
// message says which cursor is before it, so that one that is lost shows.
//
// The bus keeps nothing of who reads but what it tells operators. The reader has
// the cursor, asks again when it has done its work, and can be sent no more
// than it asked for.
const (
	// ReadSubject is where operators ask, and plugins, each in its own
	// account.
	ReadSubject = "gantry.bus.v1.read"

	headerSubject = "gantry-subject"
	headerCursor  = "gantry-cursor"
	headerBefore  = "gantry-before"
	headerStatus  = "gantry-status"
)

// Limits of one read. What is asked for beyond them is cut to them.
const (
	ReadEvents = 256
	ReadBytes  = 256 << 10 // and one event
	ReadWait   = 25 * time.Second

	requestMax  = 64 << 10 // bytes
	filtersMax  = 64
	subjectsMax = 64
)

// A Read asks for the events past a place, and waits for them.
type Read struct {
	// Name is the reader's, by which operators know it. A reader with a name
	// reads once at a time: a later read ends one that waits.
	Name string

	// Options are where to begin and what to tell. Nobody is told what was
	// reached.
	Options event.SubscribeOptions

	// Subjects are alternatives, with NATS's wildcards; none is all that the
	// asker may read.
	Subjects []string

	Max  int           // events
	Wait time.Duration // for more of them; a read without is over at the end of the stream
}

// readJSON is a Read on the wire.
type readJSON struct {
	Name     string    `json:"name,omitempty"`
	After    string    `json:"after,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Filters  []string  `json:"filters,omitempty"`
	Subjects []string  `json:"subjects,omitempty"`
	Max      int       `json:"max,omitempty"`
	WaitMS   int64     `json:"wait_ms,omitempty"`
}

func toRequest(r Read) ([]byte, error) {
	j := readJSON{Name: r.Name, Since: r.Options.Since.UTC(), Filters: r.Options.Filters, Subjects: r.Subjects, Max: r.Max, WaitMS: r.Wait.Milliseconds()}
	if r.Options.After != nil {
		j.After = r.Options.After.String()
	}
	b, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	if len(b) > requestMax {
		return nil, fmt.Errorf("filters and subjects of %d bytes are more than %d: %w", len(b), requestMax, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// fromRequest is the inverse, for bytes from anybody. Its errors are
// [errdefs.ErrInvalidArgument].
func fromRequest(b []byte) (Read, error) {
	invalid := func(format string, a ...any) (Read, error) {
		return Read{}, fmt.Errorf("read: %s: %w", fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
	}
	if len(b) > requestMax {
		return invalid("%d bytes are more than %d", len(b), requestMax)
	}
	var j readJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return invalid("%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("there is more than one JSON object")
	}
	r := Read{Name: j.Name, Subjects: j.Subjects, Max: j.Max, Options: event.SubscribeOptions{Filters: j.Filters, Since: j.Since}}
	if j.Name != "" {
		if err := ident.Check(j.Name); err != nil {
			return invalid("name: %v", err)
		}
	}
	if j.After != "" {
		c, err := event.ParseCursor(j.After)
		if err != nil {
			return invalid("after: %v", err)
		}
		r.Options.After = &c
	}
	if len(j.Filters) > filtersMax || len(j.Subjects) > subjectsMax {
		return invalid("more than %d filters or %d subjects", filtersMax, subjectsMax)
	}
	if j.Max < 0 || j.WaitMS < 0 {
		return invalid("max and wait_ms are 0 or more")
	}
	if j.Max == 0 || j.Max > ReadEvents {
		r.Max = ReadEvents
	}
	r.Wait = time.Duration(min(j.WaitMS, ReadWait.Milliseconds())) * time.Millisecond
	return r, r.Options.Check()
}

// toRead makes what a reader is told of an event.
func toRead(e event.Event, before event.Cursor, node, inbox string) *nats.Msg {
	m := toMessage(e, node)
	m.Header[headerSubject] = []string{m.Subject}
	m.Header[headerCursor] = []string{event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}.String()}
	m.Header[headerBefore] = []string{before.String()}
	m.Subject = inbox
	return m
}

// statuses are how a read ends, apart from ok.
var statuses = []struct {
	word string
	kind error
}{
	{statusGap, errdefs.ErrOutOfRange},
	{"invalid", errdefs.ErrInvalidArgument},
	{"denied", errdefs.ErrPermissionDenied},
	{"unavailable", errdefs.ErrUnavailable},
	{"failed", errdefs.ErrInternal}, // and whatever else there is
}

const (
	statusOK  = "ok"
	statusGap = "gap"
)

// toEnd makes the last message of a read. Of a gap it says both ends.
func toEnd(at, before event.Cursor, err error, inbox string) *nats.Msg {
	m := nats.NewMsg(inbox)
	status := statusOK
	if gap, ok := errors.AsType[*event.Gap](err); ok {
		before, at = gap.From, gap.To
	}
	if err != nil {
		m.Data = []byte(err.Error())
		for _, s := range statuses {
			if status = s.word; errors.Is(err, s.kind) {
				break
			}
		}
	}
	m.Header[headerStatus] = []string{status}
	m.Header[headerCursor] = []string{at.String()}
	m.Header[headerBefore] = []string{before.String()}
	return m
}

// An answer is one message to a reader: an event, or the end of the read.
type answer struct {
	event  event.Event
	at     event.Cursor
	before event.Cursor
	end    bool
	err    error // with which it ended
}

// fromAnswer is the inverse of toRead and toEnd.
func fromAnswer(m *nats.Msg) (a answer, err error) {
	status, ended := m.Header[headerStatus]
	for key, to := range map[string]*event.Cursor{headerCursor: &a.at, headerBefore: &a.before} {
		if *to, err = event.ParseCursor(first(m.Header, key)); err != nil {
			return answer{}, fmt.Errorf("header %s: %w", key, err)
		}
	}
	if !ended {
		a.event, err = fromMessage(first(m.Header, headerSubject), m.Header, m.Data)
		a.event.Epoch, a.event.Sequence = a.at.Epoch, a.at.Sequence
		return a, err
	}
	a.end = true
	switch status[0] {
	case statusOK:
		return a, nil
	case statusGap:
		a.err = &event.Gap{From: a.before, To: a.at}
		return a, nil
	}
	for _, s := range statuses {
		if status[0] == s.word {
			a.err = fmt.Errorf("%s: %w", strings.TrimSuffix(string(m.Data), ": "+s.kind.Error()), s.kind)
			return a, nil
		}
	}
	return answer{}, fmt.Errorf("status %q: %w", status[0], errNotOurs)
}
