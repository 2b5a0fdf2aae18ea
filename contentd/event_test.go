package contentd

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/namespace"
)

// A listener is the bus.
type listener chan event.Event

func (l listener) Publish(_ context.Context, e event.Event) error {
	l <- e
	return nil
}

func TestEventsTellWhatBecameTrueInOrder(t *testing.T) {
	heard := make(listener, 100)
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{Events: heard, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	t.Cleanup(func() { closeStore(t, s) })
	runWork(t, s.Publish)

	d := put(t, s, one, body)
	w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "again"})
	must(t, err)
	if err := finish(t.Context(), w, body); err == nil {
		t.Error("a second commit is nil")
	}
	_, err = s.In(one).Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"a": "1"}})
	must(t, err)
	put(t, s, two, body) // shares
	leaveIngest(t, s, one, "left", body)
	must(t, s.In(one).Abort(t.Context(), "left"))
	remove(t, s, one, d)
	if err := s.In(one).Delete(t.Context(), d); err == nil {
		t.Error("a second delete is nil")
	}
	remove(t, s, two, d)

	for i, want := range []string{
		fmt.Sprintf(`one /content/create containerd.events.ContentCreate {"digest":"%s","size":%d}`, d, len(body)),
		fmt.Sprintf(`two /content/create containerd.events.ContentCreate {"digest":"%s","size":%d}`, d, len(body)),
		fmt.Sprintf(`one /content/delete containerd.events.ContentDelete {"digest":"%s"}`, d),
		fmt.Sprintf(`two /content/delete containerd.events.ContentDelete {"digest":"%s"}`, d),
	} {
		e := <-heard
		if got := fmt.Sprintf("%s %s %s %s", e.Namespace, e.Topic, e.Type, e.JSON); got != want {
			t.Errorf("event %d: %s, want %s", i, got, want)
		}
		if e.Subject != d.String() {
			t.Errorf("event %d is about %q", i, e.Subject)
		}
	}
}

func TestHoldingsAreTheNamespacesWithABlob(t *testing.T) {
	s := openStore(t, testConfig(t), nil)
	for _, ns := range []string{"b", "a", "a-1", "a1", "z"} {
		scope := namespace.Scope{Name: ns}
		for i := range 3 {
			put(t, s, scope, []byte{byte(i)})
		}
		leaveIngest(t, s, namespace.Scope{Name: "only-ingests"}, ns, nil)
	}
	for i := range 3 {
		remove(t, s, namespace.Scope{Name: "a1"}, digest.FromBytes([]byte{byte(i)}))
	}
	got, err := s.Holdings(t.Context())
	if want := "[{a blobs } {a-1 blobs } {b blobs } {z blobs }]"; err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", []namespace.Holding{
		{Namespace: "a", Kind: "blobs"}, {Namespace: "a-1", Kind: "blobs"}, {Namespace: "b", Kind: "blobs"}, {Namespace: "z", Kind: "blobs"},
	}) {
		t.Errorf("Holdings: %v, %v; want %s", got, err, want)
	}
}
