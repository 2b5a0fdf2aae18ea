package eventnats

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

const (
	// Subjects are those of all events.
	Subjects = prefix + "*.*.>"

	prefix = "gantry.v1."

	typeJSON     = "application/json"
	typeProtobuf = "application/protobuf"
)

// Subject returns where events of a topic in a namespace are published:
// "/tasks/exit" in "k8s.io" is "gantry.v1.k8s%2Eio.tasks.exit".
func Subject(namespace, topic string) string {
	var b strings.Builder
	b.WriteString(prefix)
	escapeToken(&b, namespace)
	for part := range strings.SplitSeq(strings.TrimPrefix(topic, "/"), "/") {
		b.WriteByte('.')
		escapeToken(&b, part)
	}
	return b.String()
}

// ParseSubject is the inverse of Subject. It is false for what Subject does not
// make.
func ParseSubject(subject string) (namespace, topic string, ok bool) {
	rest, ok := strings.CutPrefix(subject, prefix)
	if !ok {
		return "", "", false
	}
	parts := strings.Split(rest, ".")
	for i, p := range parts {
		s, err := url.PathUnescape(p)
		if err != nil {
			return "", "", false
		}
		parts[i] = s
	}
	namespace, topic = parts[0], "/"+strings.Join(parts[1:], "/")
	return namespace, topic, len(parts) > 1 && Subject(namespace, topic) == subject
}

const hexDigits = "0123456789ABCDEF"

// escapeToken percent-encodes what has a meaning in a subject, and what no
// subject has.
func escapeToken(b *strings.Builder, token string) {
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(".*>%", c) >= 0 {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
}

// escapeHeader percent-encodes as CloudEvents asks of header values. So no
// value ends its line.
func escapeHeader(value string) string {
	special := func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '"' || c == '%' }
	if strings.IndexFunc(value, special) < 0 {
		return value
	}
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; special(rune(c)) {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// toMessage makes a CloudEvent in binary mode. The node is in its source.
func toMessage(e event.Event, node string) *nats.Msg {
	m := nats.NewMsg(Subject(e.Namespace, e.Topic))
	m.Data = e.JSON
	contentType := typeJSON
	if len(e.JSON) == 0 {
		m.Data, contentType = e.Raw, typeProtobuf
	}
	daemon, _, _ := strings.Cut(e.ID, "/")
	for _, h := range []struct{ key, value string }{
		{"ce-specversion", "1.0"},
		{"ce-id", e.ID},
		{"ce-source", "//" + node + "/" + daemon},
		{"ce-type", e.Type},
		{"ce-time", e.Time.UTC().Format(time.RFC3339Nano)},
		{"ce-subject", e.Subject},
		{"traceparent", e.Trace},
		{"content-type", contentType},
	} {
		if h.value != "" {
			m.Header[h.key] = []string{escapeHeader(h.value)}
		}
	}
	return m
}

// errNotOurs is a message that toMessage did not make.
var errNotOurs = errors.New("not an event")

// fromMessage is the inverse of toMessage.
func fromMessage(subject string, h nats.Header, data []byte) (event.Event, error) {
	var e event.Event
	var ok bool
	if e.Namespace, e.Topic, ok = ParseSubject(subject); !ok {
		return event.Event{}, fmt.Errorf("subject %q: %w", subject, errNotOurs)
	}
	var created string
	for _, f := range []struct {
		key string
		to  *string
	}{
		{"ce-id", &e.ID}, {"ce-type", &e.Type}, {"ce-time", &created}, {"ce-subject", &e.Subject}, {"traceparent", &e.Trace},
	} {
		value, err := url.PathUnescape(first(h, f.key))
		if err != nil {
			return event.Event{}, fmt.Errorf("header %s: %w", f.key, errNotOurs)
		}
		*f.to = value
	}
	at, err := time.Parse(time.RFC3339Nano, created)
	if err != nil || e.ID == "" || e.Check() != nil {
		return event.Event{}, fmt.Errorf("subject %q, id %q, time %q: %w", subject, e.ID, created, errNotOurs)
	}
	e.Time = at.UTC()
	if len(data) > 0 && first(h, "content-type") == typeJSON {
		e.JSON = data
	} else if len(data) > 0 {
		e.Raw = data
	}
	return e, nil
}

func first(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}
