package eventbus

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/eventbus/journal"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/suite"
)

// The body of an event's record: the form, the event's time, then each text with
// its length before it, then the payload to the end.
const (
	formJSON = 1 // the payload is JSON
	formRaw  = 2 // or protobuf of a type that is not known

	stampSize = 12 // bytes of a time: seconds and nanoseconds
)

// texts are what a record keeps beside the id, in their order.
func texts(e *event.Event) []*string {
	return []*string{&e.Namespace, &e.Topic, &e.Subject, &e.Trace, &e.Type}
}

// toRecord encodes an event. One that is too large, or that could not be told,
// is [errdefs.ErrInvalidArgument].
func toRecord(e event.Event) (journal.Record, error) {
	if err := tellable(e); err != nil {
		return journal.Record{}, fmt.Errorf("event %.100q of %s: %w", e.ID, e.Topic, err)
	}
	form, payload := byte(formJSON), e.JSON
	if len(e.JSON) == 0 {
		form, payload = formRaw, e.Raw
	}
	b := make([]byte, 0, 64+size(e))
	b = append(b, form)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Time.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Time.Nanosecond()))
	for _, s := range texts(&e) {
		b = binary.AppendUvarint(b, uint64(len(*s)))
		b = append(b, *s...)
	}
	if len(payload) > payloadMax || len(b) > namesMax || len(e.ID) > journal.IDMax {
		return journal.Record{}, fmt.Errorf("event %s of %d bytes, with %d bytes of names, is too large: %w",
			e.Topic, len(payload), len(b)+len(e.ID), errdefs.ErrInvalidArgument)
	}
	return journal.Record{ID: e.ID, Body: append(b, payload...), Value: e}, nil
}

// tellable is [errdefs.ErrInvalidArgument] for an event that some wire cannot
// carry, which would be the end of whoever is told of it, and for one under the
// id of a daemon that tells of other things: that daemon's own event of the id
// would be taken for the same.
func tellable(e event.Event) error {
	switch y := e.Time.Year(); {
	case y < 1 || y > 9999:
		return fmt.Errorf("its time is in year %d: %w", y, errdefs.ErrInvalidArgument)
	case !utf8.ValidString(e.Type):
		return fmt.Errorf("its type is %.100q: %w", e.Type, errdefs.ErrInvalidArgument)
	case len(e.JSON) > 0 && !json.Valid(e.JSON):
		return fmt.Errorf("its body is no JSON: %w", errdefs.ErrInvalidArgument)
	}
	noun, _, _ := strings.Cut(strings.TrimPrefix(e.Topic, "/"), "/")
	by, _, _ := strings.Cut(e.ID, "/")
	teller, _ := suite.ByName(by)
	for _, d := range suite.Daemons {
		if len(teller.Tells) > 0 && d.Name != by && slices.Contains(d.Tells, noun) {
			return fmt.Errorf("%s tells of %s: %w", d.Name, noun, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// fromRecord is the inverse. Its error is [errdefs.ErrDataLoss].
func fromRecord(r journal.Record, epoch string) (event.Event, error) {
	e := event.Event{ID: r.ID, Sequence: r.Sequence, Epoch: epoch}
	b := r.Body
	if len(b) < 1+stampSize || b[0] != formJSON && b[0] != formRaw {
		return e, fmt.Errorf("record %d is no event: %w", r.Sequence, errdefs.ErrDataLoss)
	}
	e.Time = time.Unix(int64(binary.LittleEndian.Uint64(b[1:])), int64(binary.LittleEndian.Uint32(b[9:]))).UTC()
	rest := b[1+stampSize:]
	for _, s := range texts(&e) {
		n, width := binary.Uvarint(rest)
		if width <= 0 || n > uint64(len(rest)-width) {
			return e, fmt.Errorf("record %d is no event: %w", r.Sequence, errdefs.ErrDataLoss)
		}
		*s, rest = string(rest[width:width+int(n)]), rest[width+int(n):]
	}
	if len(rest) > 0 && b[0] == formJSON {
		e.JSON = rest
	} else if len(rest) > 0 {
		e.Raw = rest
	}
	return e, nil
}
