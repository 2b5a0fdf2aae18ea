package eventnats

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gantryd/gantry/services/event"
)

// What a fleet is told of a node's events has the node's name in its subject:
// "gantry.<node>.v1.<namespace>.<noun>.<verb>".

// headerOmitted is how many bytes the body of an event had that is too large to
// be told.
const headerOmitted = "gantry-omitted"

// toldMax is the largest message to a fleet: a server takes 1 MiB, unless it is
// told otherwise.
const toldMax = 1<<20 - 4<<10

// FleetSubjects are those of everything that a fleet is told by a node.
func FleetSubjects(node string) string { return fleetPrefix(node) + ">" }

func fleetPrefix(node string) string {
	var b strings.Builder
	b.WriteString("gantry.")
	escapeToken(&b, node)
	b.WriteString(".v1.")
	return b.String()
}

// ToFleet makes what a fleet is told of an event. The id is that of the event
// with the node's name before it: what has no daemon's id can be the same on two
// nodes.
func ToFleet(e event.Event, node string) *nats.Msg {
	m := toMessage(e, node)
	m.Subject = fleetPrefix(node) + strings.TrimPrefix(m.Subject, prefix)
	m.Header[nats.MsgIdHdr] = []string{escapeHeader(node + "/" + e.ID)}
	m.Header["gantry-cursor"] = []string{event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}.String()}
	if m.Size() > toldMax {
		OmitBody(m)
	}
	return m
}

// OmitBody makes a message to a fleet small, which says how large it was.
func OmitBody(m *nats.Msg) {
	m.Header[headerOmitted] = []string{strconv.Itoa(len(m.Data))}
	m.Data = nil
}

// codeMessageTooLarge is the server's code for a message over a stream's limit.
const codeMessageTooLarge = 10054

// TooLarge says whether a stream did not take a message for its size.
func TooLarge(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == codeMessageTooLarge
}

// GapToFleet makes what a fleet is told where events are missing: a message on
// "gantry.<node>.v1.gap".
func GapToFleet(g *event.Gap, node string) (*nats.Msg, error) {
	m := nats.NewMsg(fleetPrefix(node) + "gap")
	var err error
	m.Data, err = json.Marshal(map[string]string{"from": g.From.String(), "to": g.To.String()})
	m.Header[nats.MsgIdHdr] = []string{escapeHeader(node + "/gap/" + g.From.String())}
	return m, err
}
