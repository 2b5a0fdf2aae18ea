package event

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Fields returns the reader of e's fields that filters match: "namespace",
// "topic" and "event.<field>", where a field of the payload that is empty is
// not there. The payload is read when it is first asked for.
func (e Event) Fields() func(path []string) (value string, present bool) {
	var payload any
	return func(path []string) (string, bool) {
		switch {
		case len(path) == 1 && path[0] == "namespace":
			return e.Namespace, e.Namespace != ""
		case len(path) == 1 && path[0] == "topic":
			return e.Topic, e.Topic != ""
		case len(path) > 1 && path[0] == "event":
			if payload == nil {
				payload = e.payload()
			}
			return lookup(payload, path[1:])
		}
		return "", false
	}
}

// payload is what the JSON says; no JSON, and none that parses, say nothing.
func (e Event) payload() any {
	d := json.NewDecoder(bytes.NewReader(e.JSON))
	d.UseNumber() // an int64 is no float
	var v map[string]any
	if d.Decode(&v) != nil {
		return map[string]any{}
	}
	return v
}

// lookup walks down a path. Where no field has the next name, the rest of the
// path is one name: keys of labels have dots.
func lookup(v any, path []string) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, v != "" && len(path) == 0
	case json.Number:
		return v.String(), len(path) == 0
	case bool:
		return "true", v && len(path) == 0
	case map[string]any:
		if len(path) == 0 {
			return "", false
		}
		if next, ok := v[path[0]]; ok {
			return lookup(next, path[1:])
		}
		if next, ok := v[strings.Join(path, ".")]; ok {
			return lookup(next, nil)
		}
	}
	return "", false
}

// subjects are the fields that say what an event is about, the most telling
// first.
var subjects = []string{"container_id", "sandbox_id", "id", "name", "digest", "key"}

// About returns the subject of an event that does not say it itself, found in
// its payload. It is empty if nothing there looks like one.
func (e Event) About() string {
	if e.Subject != "" {
		return e.Subject
	}
	payload := e.payload()
	for _, name := range subjects {
		if s, ok := lookup(payload, []string{name}); ok {
			return s
		}
	}
	return ""
}
