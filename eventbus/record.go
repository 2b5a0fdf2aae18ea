package eventbus

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/eventbus/journal"
	"github.com/gantryd/gantry/services/event"
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

// toRecord encodes an event. One that is too large is
// [errdefs.ErrInvalidArgument].
func toRecord(e event.Event) (journal.Record, error) {
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
