package contentrpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// These tests are of what containerd's own clients rely on and the contract does
// not say: the messages themselves.

type wire struct {
	t     *testing.T
	store content.Store
	c     api.ContentClient
	ctx   context.Context
}

func newWire(t *testing.T) wire {
	m := contenttest.NewMemory(nil)
	scope := namespace.Scope{Name: "ns"}
	conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { Register(r, m) })
	return wire{t: t, store: m.In(scope), c: api.NewContentClient(conn), ctx: rpc.WithScope(t.Context(), scope)}
}

// open begins a Write and returns it with its first answer.
func (w wire) open(req *api.WriteContentRequest) (api.Content_WriteClient, *api.WriteContentResponse) {
	w.t.Helper()
	stream, err := w.c.Write(w.ctx)
	if err != nil {
		w.t.Fatalf("Write: %v", err)
	}
	resp, err := exchange(stream, req)
	if err != nil {
		w.t.Fatalf("first answer: %v", err)
	}
	return stream, resp
}

func exchange(stream api.Content_WriteClient, req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream.Recv()
}

func (w wire) put(b []byte) digest.Digest {
	w.t.Helper()
	d := digest.FromBytes(b)
	if err := content.Put(w.t.Context(), w.store, content.WriterOptions{Ref: "put", Expected: d}, bytes.NewReader(b), nil); err != nil {
		w.t.Fatalf("Put: %v", err)
	}
	return d
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

func TestNoNamespaceIsRefusedByEveryCall(t *testing.T) {
	w := newWire(t)
	ctx := t.Context()
	_, err := w.c.Info(ctx, &api.InfoRequest{})
	wantKind(t, "Info", err, errdefs.ErrFailedPrecondition)
	_, err = w.c.Update(ctx, &api.UpdateRequest{})
	wantKind(t, "Update", err, errdefs.ErrFailedPrecondition)
	_, err = w.c.Delete(ctx, &api.DeleteContentRequest{})
	wantKind(t, "Delete", err, errdefs.ErrFailedPrecondition)
	_, err = w.c.Status(ctx, &api.StatusRequest{})
	wantKind(t, "Status", err, errdefs.ErrFailedPrecondition)
	_, err = w.c.ListStatuses(ctx, &api.ListStatusesRequest{})
	wantKind(t, "ListStatuses", err, errdefs.ErrFailedPrecondition)
	_, err = w.c.Abort(ctx, &api.AbortRequest{})
	wantKind(t, "Abort", err, errdefs.ErrFailedPrecondition)
	list, _ := w.c.List(ctx, &api.ListContentRequest{})
	_, err = list.Recv()
	wantKind(t, "List", err, errdefs.ErrFailedPrecondition)
	read, _ := w.c.Read(ctx, &api.ReadContentRequest{})
	_, err = read.Recv()
	wantKind(t, "Read", err, errdefs.ErrFailedPrecondition)
	write, _ := w.c.Write(ctx)
	_, err = exchange(write, &api.WriteContentRequest{Ref: "r"})
	wantKind(t, "Write", err, errdefs.ErrFailedPrecondition)
	_, err = w.c.Info(rpc.WithScope(ctx, namespace.Scope{Name: "../x"}), &api.InfoRequest{})
	wantKind(t, "Info in a namespace that is none", err, errdefs.ErrInvalidArgument)
}

func TestReadSendsWhatWasAskedForFromOffsetZero(t *testing.T) {
	w := newWire(t)
	b := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB
	d := w.put(b)
	size := int64(len(b))
	for _, c := range []struct{ offset, size, from, to int64 }{
		{0, 0, 0, size},
		{0, -1, 0, size},
		{-5, 0, 0, size},
		{5, 7, 5, 12},
		{1 << 20, 2 << 20, 1 << 20, size},
		{size - 3, 100, size - 3, size},
		{3, 1<<63 - 1, 3, size},
		{size, 0, size, size},
		{size, 10, size, size},
	} {
		what := fmt.Sprintf("Read of %d at %d", c.size, c.offset)
		stream, err := w.c.Read(w.ctx, &api.ReadContentRequest{Digest: d.String(), Offset: c.offset, Size: c.size})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got, messages := []byte{}, 0
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if m.Offset != int64(len(got)) || len(m.Data) > 1<<20 {
				t.Errorf("%s: message of %d bytes at %d, want at most 1 MiB at %d", what, len(m.Data), m.Offset, len(got))
			}
			got = append(got, m.Data...)
			messages++
		}
		if !bytes.Equal(got, b[c.from:c.to]) {
			t.Errorf("%s: %d bytes, want those from %d to %d", what, len(got), c.from, c.to)
		}
		if c.from == c.to && messages > 0 {
			t.Errorf("%s: %d messages for nothing", what, messages)
		}
	}
	for offset, kind := range map[int64]error{size + 1: errdefs.ErrOutOfRange, 1<<63 - 1: errdefs.ErrOutOfRange} {
		stream, err := w.c.Read(w.ctx, &api.ReadContentRequest{Digest: d.String(), Offset: offset})
		if err == nil {
			_, err = stream.Recv()
		}
		wantKind(t, fmt.Sprintf("Read at %d", offset), err, kind)
	}
}

func TestListSendsAtMostAHundredInfosAtOnce(t *testing.T) {
	w := newWire(t)
	for i := range 230 {
		w.put([]byte{byte(i), 1})
	}
	stream, err := w.c.List(w.ctx, &api.ListContentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(m.Info))
	}
	if fmt.Sprint(sizes) != "[100 100 30]" {
		t.Errorf("messages of %v infos", sizes)
	}
}

func TestWriteNeedsARef(t *testing.T) {
	w := newWire(t)
	stream, err := w.c.Write(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: []byte("x")})
	wantKind(t, "Write", err, errdefs.ErrInvalidArgument)
}

func TestWriteAnswersWithOffsetDigestAndTotal(t *testing.T) {
	w := newWire(t)
	stream, resp := w.open(&api.WriteContentRequest{Action: api.WriteAction_STAT, Ref: "r", Total: 6})
	if resp.Offset != 0 || resp.Total != 6 || resp.Digest != digest.FromString("").String() || resp.StartedAt == nil || resp.UpdatedAt == nil {
		t.Errorf("STAT: %v", resp)
	}
	resp, err := exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: []byte("abc")})
	if err != nil || resp.Action != api.WriteAction_WRITE || resp.Offset != 3 || resp.Total != 6 || resp.Digest != digest.FromString("abc").String() {
		t.Errorf("WRITE: %v, %v", resp, err)
	}
	resp, err = exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_STAT, Total: 7})
	if err != nil || resp.Offset != 3 || resp.Total != 7 || resp.Digest != digest.FromString("abc").String() {
		t.Errorf("STAT: %v, %v", resp, err)
	}
	resp, err = exchange(stream, &api.WriteContentRequest{
		Action: api.WriteAction_COMMIT, Offset: 3, Total: 6, Data: []byte("def"), Labels: map[string]string{"a": "1"},
		Expected: digest.FromString("abcdef").String(),
	})
	if err != nil || resp.Action != api.WriteAction_COMMIT || resp.Offset != 6 || resp.Digest != digest.FromString("abcdef").String() {
		t.Errorf("COMMIT: %v, %v", resp, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after COMMIT: %v, want the end", err)
	}
	info, err := w.store.Info(t.Context(), digest.FromString("abcdef"))
	if err != nil || info.Labels["a"] != "1" {
		t.Errorf("Info: %+v, %v", info, err)
	}
}

func TestWriteAtAnotherOffsetIsOutOfRange(t *testing.T) {
	for _, action := range []api.WriteAction{api.WriteAction_WRITE, api.WriteAction_COMMIT} {
		for _, offset := range []int64{2, 4} {
			w := newWire(t)
			stream, _ := w.open(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: "r", Data: []byte("abc")})
			_, err := exchange(stream, &api.WriteContentRequest{Action: action, Offset: offset, Data: []byte("x")})
			wantKind(t, fmt.Sprintf("%v @%d", action, offset), err, errdefs.ErrOutOfRange)
			if st, err := w.store.Status(t.Context(), "r"); err != nil || st.Offset != 3 {
				t.Errorf("Status: %+v, %v; want the ingest kept", st, err)
			}
		}
	}
}

func TestWriteAtOffsetZeroStartsOver(t *testing.T) {
	w := newWire(t)
	stream, _ := w.open(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: "r", Data: []byte("wrong")})
	resp, err := exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: []byte("right")})
	if err != nil || resp.Offset != 5 || resp.Digest != digest.FromString("right").String() {
		t.Errorf("WRITE: %v, %v", resp, err)
	}
	// A commit does so too.
	resp, err = exchange(stream, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Data: []byte("new")})
	if err != nil || resp.Offset != 3 || resp.Digest != digest.FromString("new").String() {
		t.Errorf("COMMIT: %v, %v", resp, err)
	}
	if _, err := w.store.Info(t.Context(), digest.FromString("new")); err != nil {
		t.Errorf("Info: %v", err)
	}
}

func TestExpectedBlobThatAppearsEndsTheIngest(t *testing.T) {
	for _, req := range []*api.WriteContentRequest{
		{Action: api.WriteAction_STAT},
		{Action: api.WriteAction_WRITE, Offset: 4, Data: []byte("more")},
		{Action: api.WriteAction_COMMIT, Offset: 4},
		{Action: api.WriteAction_COMMIT, Offset: 99, Total: 7},
	} {
		w := newWire(t)
		stream, _ := w.open(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: "r", Data: []byte("half")})
		req.Expected = w.put([]byte("the whole")).String()
		_, err := exchange(stream, req)
		wantKind(t, req.Action.String(), err, errdefs.ErrAlreadyExists)
		_, err = w.store.Status(t.Context(), "r")
		wantKind(t, "Status", err, errdefs.ErrNotFound)
		free(t, w, "r")
	}
}

// free opens and closes a writer, so that it fails if the ref is held.
func free(t *testing.T, w wire, ref string) {
	t.Helper()
	wr, err := w.store.Writer(t.Context(), content.WriterOptions{Ref: ref})
	if err != nil {
		t.Errorf("Writer(%s): %v", ref, err)
		return
	}
	wr.Close()
}

func TestWriteHoldsTheRefAsLongAsItsStreamLives(t *testing.T) {
	w := newWire(t)
	stream, _ := w.open(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: "r", Data: []byte("abc")})
	second, err := w.c.Write(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = exchange(second, &api.WriteContentRequest{Action: api.WriteAction_STAT, Ref: "r"})
	wantKind(t, "second Write", err, errdefs.ErrUnavailable)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after CloseSend: %v, want the end", err)
	}
	free(t, w, "r")
	if st, err := w.store.Status(t.Context(), "r"); err != nil || st.Offset != 3 {
		t.Errorf("Status: %+v, %v; want the ingest kept", st, err)
	}
}

func TestWriterThatIsGivenUpLetsGoOfTheRef(t *testing.T) {
	w := newWire(t)
	stores := stores{w.c}
	ctx, cancel := context.WithCancel(t.Context())
	wr, err := stores.In(namespace.Scope{Name: "ns"}).Writer(ctx, content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wr.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	cancel()
	waiting, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	again, err := content.Wait(waiting, w.store, content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	defer again.Close()
	if st, err := again.Status(t.Context()); err != nil || st.Offset != 3 {
		t.Errorf("Status: %+v, %v; want the ingest kept", st, err)
	}
	if _, err := wr.Write([]byte("def")); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after the end of the context: %v", err)
	}
}

func TestCommitEndsWithItsContext(t *testing.T) {
	w := newWire(t)
	stores := stores{w.c}
	wr, err := stores.In(namespace.Scope{Name: "ns"}).Writer(t.Context(), content.WriterOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, "Commit", wr.Commit(ctx, 0, "", nil), context.Canceled)
}
