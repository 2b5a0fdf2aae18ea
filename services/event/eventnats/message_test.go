package eventnats

import (
	"bufio"
	"bytes"
	"maps"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/event"
)

func TestSubjects(t *testing.T) {
	for _, c := range []struct{ namespace, topic, want string }{
		{"moby", "/tasks/exit", "gantry.v1.moby.tasks.exit"},
		{"k8s.io", "/tasks/exec-added", "gantry.v1.k8s%2Eio.tasks.exec-added"},
		{"a", "/b/c/d.e", "gantry.v1.a.b.c.d%2Ee"},
		{"*.>", "/ %/é", "gantry.v1.%2A%2E%3E.%20%25.%C3%A9"},
	} {
		if got := Subject(c.namespace, c.topic); got != c.want {
			t.Errorf("Subject(%q, %q): %s, want %s", c.namespace, c.topic, got, c.want)
		}
		if ns, topic, ok := ParseSubject(c.want); ns != c.namespace || topic != c.topic || !ok {
			t.Errorf("ParseSubject(%s): %q, %q, %t", c.want, ns, topic, ok)
		}
	}
	for _, s := range []string{"", "gantry.v1.", "gantry.v1.a", "gantry.v2.a.b.c", "gantry.v1.a.b%.c", "gantry.v1.a%2e.b.c", "gantry.v1.%61.b.c"} {
		if ns, topic, ok := ParseSubject(s); ok {
			t.Errorf("ParseSubject(%q): %q, %q", s, ns, topic)
		}
	}
}

func TestAMessageIsACloudEvent(t *testing.T) {
	e := event.Event{
		ID: "taskd/00ff/7", Namespace: "k8s.io", Topic: "/tasks/exit", Time: time.Date(2026, 2, 3, 4, 5, 6, 7000, time.UTC),
		Subject: "a \"name\"\r\nNats-Expected-Stream: x", Type: "containerd.events.TaskExit", JSON: []byte(`{}`),
		Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	m := toMessage(e, "node-1")
	want := nats.Header{
		"ce-source": {"//node-1/taskd"}, "ce-type": {"containerd.events.TaskExit"}, "ce-time": {"2026-02-03T04:05:06.000007Z"},
		"ce-id": {"taskd/00ff/7"}, "ce-specversion": {"1.0"},
		"ce-subject":  {"a%20%22name%22%0D%0ANats-Expected-Stream:%20x"},
		"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "content-type": {"application/json"},
	}
	if d := cmp.Diff(want, m.Header); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	got, err := fromMessage(m.Subject, m.Header, m.Data)
	if d := cmp.Diff(e, got); d != "" || err != nil {
		t.Errorf("there and back: %v\n%s", err, d)
	}
	for key := range want {
		if key == "ce-id" || key == "ce-time" {
			h := maps.Clone(m.Header)
			delete(h, key)
			if e, err := fromMessage(m.Subject, h, m.Data); err == nil {
				t.Errorf("a message without %s is %+v", key, e)
			}
		}
	}
}

func FuzzSubject(f *testing.F) {
	f.Add("k8s.io", "/tasks/exit")
	f.Add("*", "/>/ ")
	f.Fuzz(func(t *testing.T, namespace, topic string) {
		if !strings.HasPrefix(topic, "/") {
			topic = "/" + topic
		}
		s := Subject(namespace, topic)
		if ns, tp, ok := ParseSubject(s); ns != namespace || tp != topic || !ok {
			t.Errorf("Subject(%q, %q) is %q, and back %q, %q, %t", namespace, topic, s, ns, tp, ok)
		}
		if strings.ContainsAny(s, "*> \r\n\x00") || strings.Count(s, ".") != 2+strings.Count(topic, "/") {
			t.Errorf("Subject(%q, %q) is %q", namespace, topic, s)
		}
	})
}

func FuzzParseSubject(f *testing.F) {
	f.Add("gantry.v1.a.b.c")
	f.Add("gantry.v1.a%2E.b%.c")
	f.Fuzz(func(t *testing.T, s string) {
		if ns, topic, ok := ParseSubject(s); ok && Subject(ns, topic) != s {
			t.Errorf("ParseSubject(%q): %q, %q", s, ns, topic)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add("id", "subject", "type", "trace", []byte("{}"), true)
	f.Add("a/b/1", "a\r\nb: c", "%0", "é\x00", []byte{0xff}, false)
	f.Fuzz(func(t *testing.T, id, subject, typ, trace string, data []byte, isJSON bool) {
		e := event.Event{ID: id, Namespace: "one", Topic: "/a/b", Time: time.Unix(1, 2).UTC(), Subject: subject, Type: typ, Trace: trace}
		if isJSON {
			e.JSON = data
		} else {
			e.Raw = data
		}
		if len(data) == 0 {
			e.JSON, e.Raw = nil, nil
		}
		m := toMessage(e, "node")
		// As the client library puts it on the wire.
		var wire bytes.Buffer
		if err := http.Header(m.Header).Write(&wire); err != nil {
			t.Fatal(err)
		}
		wire.WriteString("\r\n")
		r := textproto.NewReader(bufio.NewReader(&wire))
		read := nats.Header{}
		for {
			line, err := r.ReadLine()
			if err != nil || line == "" {
				break
			}
			key, value, _ := strings.Cut(line, ":")
			read[key] = append(read[key], strings.TrimSpace(value))
		}
		got, err := fromMessage(m.Subject, read, m.Data)
		if id == "" {
			if err == nil {
				t.Error("an event without id")
			}
			return
		}
		if d := cmp.Diff(e, got); d != "" || err != nil {
			t.Errorf("there and back: %v\n%s", err, d)
		}
	})
}
