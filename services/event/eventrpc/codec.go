package eventrpc

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	eventpb "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/event"
)

// known are the payloads that are turned into JSON.
var known = index(
	&eventpb.ContainerCreate{}, &eventpb.ContainerUpdate{}, &eventpb.ContainerDelete{},
	&eventpb.ContentCreate{}, &eventpb.ContentDelete{},
	&eventpb.ImageCreate{}, &eventpb.ImageUpdate{}, &eventpb.ImageDelete{},
	&eventpb.NamespaceCreate{}, &eventpb.NamespaceUpdate{}, &eventpb.NamespaceDelete{},
	&eventpb.SandboxCreate{}, &eventpb.SandboxStart{}, &eventpb.SandboxExit{},
	&eventpb.SnapshotPrepare{}, &eventpb.SnapshotCommit{}, &eventpb.SnapshotRemove{},
	&eventpb.TaskCreate{}, &eventpb.TaskStart{}, &eventpb.TaskDelete{}, &eventpb.TaskExit{},
	&eventpb.TaskOOM{}, &eventpb.TaskExecAdded{}, &eventpb.TaskExecStarted{},
	&eventpb.TaskPaused{}, &eventpb.TaskResumed{}, &eventpb.TaskCheckpointed{},
)

func index(messages ...proto.Message) map[string]protoreflect.MessageType {
	byName := make(map[string]protoreflect.MessageType, len(messages))
	for _, m := range messages {
		byName[string(m.ProtoReflect().Descriptor().FullName())] = m.ProtoReflect().Type()
	}
	return byName
}

var (
	marshalJSON   = protojson.MarshalOptions{UseProtoNames: true}
	unmarshalJSON = protojson.UnmarshalOptions{DiscardUnknown: true}
)

// setPayload reads a payload off the wire into e: as JSON if the type is known
// and nothing is lost by it, and as it came otherwise.
func setPayload(e *event.Event, a *anypb.Any) {
	e.Type, e.Raw = a.GetTypeUrl(), a.GetValue()
	name := e.Type[strings.LastIndexByte(e.Type, '/')+1:]
	t, ok := known[name]
	if !ok {
		return
	}
	m := t.New().Interface()
	if proto.Unmarshal(a.GetValue(), m) != nil {
		return
	}
	b, err := marshalJSON.Marshal(m)
	if err != nil || !plain(m.ProtoReflect()) && !says(b, m) {
		return
	}
	var compact bytes.Buffer
	if json.Compact(&compact, b) != nil {
		return
	}
	e.Type, e.JSON, e.Raw = name, compact.Bytes(), nil
}

// plain says whether a message has nothing that JSON could lose: fields that are
// not known, and messages within messages that are bytes.
func plain(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 || m.Descriptor().FullName() == "google.protobuf.Any" {
		return false
	}
	all := true
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				all = all && plain(v.List().Get(i).Message())
			}
		case f.IsMap():
			all = f.MapValue().Message() == nil
		default:
			all = plain(v.Message())
		}
		return all
	})
	return all
}

// says says whether JSON has all that m has.
func says(b []byte, m proto.Message) bool {
	again := m.ProtoReflect().Type().New().Interface()
	return unmarshalJSON.Unmarshal(b, again) == nil && proto.Equal(m, again)
}

// payload is the inverse. JSON of a type that nobody here knows, or that is not
// what its type says, goes as JSON: that is how containerd's clients read a type
// that is no protobuf, and one such event ends nobody's subscription.
func payload(e event.Event) (*anypb.Any, error) {
	if len(e.JSON) == 0 {
		return &anypb.Any{TypeUrl: e.Type, Value: e.Raw}, nil
	}
	t, ok := known[e.Type]
	if !ok {
		return &anypb.Any{TypeUrl: e.Type, Value: e.JSON}, nil
	}
	m := t.New().Interface()
	if unmarshalJSON.Unmarshal(e.JSON, m) != nil {
		return &anypb.Any{TypeUrl: e.Type, Value: e.JSON}, nil
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	// containerd's form: the bare name.
	return &anypb.Any{TypeUrl: e.Type, Value: b}, nil
}

// Fields of an event that containerd's Envelope does not have travel in it
// under numbers that it does not have either; other clients skip them.
const (
	fieldID       = 51001
	fieldTrace    = 51002
	fieldSubject  = 51003
	fieldEpoch    = 51004
	fieldSequence = 51005
)

func toEnvelope(e event.Event) (*types.Envelope, error) {
	a, err := payload(e)
	if err != nil {
		return nil, err
	}
	env := &types.Envelope{Timestamp: toTimestamp(e.Time), Namespace: e.Namespace, Topic: e.Topic, Event: a}
	var more []byte
	for _, f := range []struct {
		number protowire.Number
		value  string
	}{{fieldID, e.ID}, {fieldTrace, e.Trace}, {fieldSubject, e.Subject}, {fieldEpoch, e.Epoch}} {
		if f.value != "" {
			more = protowire.AppendTag(more, f.number, protowire.BytesType)
			more = protowire.AppendString(more, f.value)
		}
	}
	if e.Sequence != 0 {
		more = protowire.AppendTag(more, fieldSequence, protowire.VarintType)
		more = protowire.AppendVarint(more, e.Sequence)
	}
	env.ProtoReflect().SetUnknown(more)
	return env, nil
}

func fromEnvelope(env *types.Envelope) event.Event {
	e := event.Event{Namespace: env.GetNamespace(), Topic: env.GetTopic(), Time: fromTimestamp(env.GetTimestamp())}
	setPayload(&e, env.GetEvent())
	for rest := env.ProtoReflect().GetUnknown(); len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		size := protowire.ConsumeFieldValue(number, kind, rest[max(n, 0):])
		if n < 0 || size < 0 {
			break // cannot be: it was parsed once
		}
		setField(&e, number, kind, rest[n:n+size])
		rest = rest[n+size:]
	}
	e.Subject = e.About()
	return e
}

func setField(e *event.Event, number protowire.Number, kind protowire.Type, value []byte) {
	if number == fieldSequence && kind == protowire.VarintType {
		e.Sequence, _ = protowire.ConsumeVarint(value)
		return
	}
	if kind != protowire.BytesType {
		return
	}
	s, _ := protowire.ConsumeString(value)
	switch number {
	case fieldID:
		e.ID = s
	case fieldTrace:
		e.Trace = s
	case fieldSubject:
		e.Subject = s
	case fieldEpoch:
		e.Epoch = s
	}
}

func toTimestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTimestamp(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
