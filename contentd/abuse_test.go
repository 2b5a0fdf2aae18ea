package contentd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/namespace"
)

// beginWrite begins a Write and waits for its first answer: it holds a ref then, if
// nobody else does.
func beginWrite(ctx context.Context, c api.ContentClient, req *api.WriteContentRequest) (api.Content_WriteClient, error) {
	stream, err := c.Write(ctx)
	if err == nil {
		err = stream.Send(req)
	}
	if err == nil || errors.Is(err, io.EOF) {
		_, err = stream.Recv()
	}
	return stream, err
}

func (s *site) allFree() bool {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	return len(s.store.writers) == 0
}

// TestIngestsThatAreAbandonedCostNothing opens 10,000 ingests whose clients hang
// up in the middle: no ref stays held, nothing but the ingests themselves is
// left, and they go when their time is over.
func TestIngestsThatAreAbandonedCostNothing(t *testing.T) {
	s := newSite(t)
	s.works("before")
	base := measure(t)
	const connections, each = 20, 500 // 10,000
	for i := range connections {
		conn := s.dial()
		c := api.NewContentClient(conn)
		var wg sync.WaitGroup
		failed := make(chan error, each)
		for j := range each {
			wg.Go(func() {
				_, err := beginWrite(s.as(one), c, &api.WriteContentRequest{
					Action: toWrite, Ref: fmt.Sprintf("%d-%d", i, j), Total: 14, Data: []byte("half of it"),
				})
				failed <- err
			})
		}
		wg.Wait()
		close(failed)
		for err := range failed {
			must(t, err)
		}
		conn.Close()
	}
	eventually(t, "every ref is let go of", s.allFree)
	wantBack(t, base)
	all, err := s.store.In(one).ListStatuses(t.Context())
	if err != nil || len(all) != connections*each {
		t.Errorf("ListStatuses: %d, %v; want them all, to be resumed", len(all), err)
	}
	// Whoever comes back goes on.
	if _, err := s.write(s.as(one), &api.WriteContentRequest{Action: toCommit, Ref: "7-7", Offset: 10, Total: 14, Data: []byte(" and"), Expected: digest.FromString("half of it and").String()}); err != nil {
		t.Errorf("resume: %v", err)
	}
	s.works("afterwards")

	s.ahead.Store(int64(25 * time.Hour))
	s.store.sweep(t.Context())
	if all, err := s.store.In(one).ListStatuses(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("ListStatuses a day later: %d, %v", len(all), err)
	}
	// Collect may be at the last of them.
	eventually(t, "no file of an ingest is left", func() bool {
		names, err := filepath.Glob(filepath.Join(s.store.ingests(), "*"))
		must(t, err)
		return len(names) == 0
	})
	wantBack(t, base)
}

// TestClientThatStopsInTheMiddleHoldsNothingElse: it has its ref for as long as
// its connection lives, be it for days, and nothing else waits for it.
func TestClientThatStopsInTheMiddleHoldsNothingElse(t *testing.T) {
	s := newSite(t)
	d := put(t, s.store, one, body)
	base := measure(t)
	conn := s.dial()
	c := api.NewContentClient(conn)
	_, err := beginWrite(s.as(one), c, &api.WriteContentRequest{Action: toWrite, Ref: "held", Data: []byte("half")})
	must(t, err)
	_, err = beginWrite(s.as(two), c, &api.WriteContentRequest{Action: toStat, Ref: "lent", Expected: d.String()})
	must(t, err)
	for _, ahead := range []time.Duration{time.Hour, 25 * time.Hour, 100 * time.Hour} {
		s.ahead.Store(int64(ahead))
		s.store.sweep(t.Context())
		s.works(fmt.Sprintf("%v later", ahead))
		_, err := s.write(s.as(one), &api.WriteContentRequest{Action: toStat, Ref: "held"})
		wantKind(t, "Write of the ref", err, errdefs.ErrUnavailable)
		if _, err := s.write(s.as(two), &api.WriteContentRequest{Action: toWrite, Ref: "held", Data: []byte("other")}); err != nil {
			t.Errorf("Write of the ref in another namespace: %v", err)
		}
		st, err := s.api.Status(s.as(one), &api.StatusRequest{Ref: "held"})
		if err != nil || st.Status.Offset != 4 {
			t.Errorf("%v later: Status: %v, %v", ahead, st, err)
		}
	}
	// What it borrows can be deleted, and stays for it.
	remove(t, s.store, one, d)
	s.store.sweep(t.Context())
	if !hasFile(t, s.store, d) {
		t.Error("bytes that are borrowed were collected")
	}
	// Somebody else may end it.
	_, err = s.api.Abort(s.as(one), &api.AbortRequest{Ref: "held"})
	must(t, err)
	conn.Close()
	eventually(t, "what was borrowed is collected", func() bool { return !hasFile(t, s.store, d) })
	wantBack(t, base)
}

// TestClientsThatStopDoNotHoldTheEnd: a server that drains gives them their time
// and no more, and what they wrote is kept.
func TestClientsThatStopDoNotHoldTheEnd(t *testing.T) {
	s := newSite(t)
	base := measure(t)
	b := bytes.Repeat([]byte("x"), 8<<20)
	d := put(t, s.store, one, b)
	conn := s.dial()
	c := api.NewContentClient(conn)
	for i := range 20 {
		_, err := beginWrite(s.as(one), c, &api.WriteContentRequest{Action: toWrite, Ref: fmt.Sprint(i), Data: []byte("half")})
		must(t, err)
		_, err = c.Read(s.as(one), &api.ReadContentRequest{Digest: d.String()})
		must(t, err)
	}
	s.srv.Drain(100 * time.Millisecond) // on a busy machine the last need a little more
	eventually(t, "every ref is let go of", s.allFree)
	for i := range 20 {
		if st, err := s.store.In(one).Status(t.Context(), fmt.Sprint(i)); err != nil || st.Offset != 4 {
			t.Errorf("Status: %+v, %v", st, err)
		}
	}
	conn.Close()
	wantBack(t, base)
}

// TestReadersThatNeverReadHoldLittle: what is made for them is not much, and
// nobody waits for them.
func TestReadersThatNeverReadHoldLittle(t *testing.T) {
	s := newSite(t)
	d := put(t, s.store, one, bytes.Repeat([]byte("0123456789abcdef"), 1<<18)) // 4 MiB
	labels := map[string]string{"a": strings.Repeat("v", 4000), "b": strings.Repeat("v", 4000)}
	for i := range 50 {
		b := []byte(fmt.Sprint(i))
		must(t, content.Put(t.Context(), s.store.In(one), content.WriterOptions{Ref: "r"}, bytes.NewReader(b), labels))
	}
	s.works("before")
	for method, req := range map[string]proto.Message{
		"/containerd.services.content.v1.Content/Read": &api.ReadContentRequest{Digest: d.String()},
		"/containerd.services.content.v1.Content/List": &api.ListContentRequest{},
	} {
		base := measure(t)
		const readers = 1000
		hangUp := deaf(t, s.socket, method, req, readers)
		// Some calls run on goroutines that were there.
		eventually(t, "every call waits to be read", func() bool { return runtime.NumGoroutine() >= base.goroutines+readers*9/10 })
		s.works("beside " + method)
		var held toll
		eventually(t, "none holds much", func() bool {
			held = measure(t)
			return (held.heap-base.heap)/readers < 320<<10
		})
		t.Logf("%s: at the base %v, with %d readers that do not read %v", method, base, readers, held)
		hangUp()
		wantBack(t, base)
	}
	remove(t, s.store, one, d)
	eventually(t, "the blob is collected", func() bool { return !hasFile(t, s.store, d) })
}

// deaf makes calls by hand, on one connection, and reads nothing.
func deaf(t *testing.T, socket, method string, req proto.Message, calls int) (hangUp func()) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	b, err := proto.Marshal(req)
	must(t, err)
	b = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	_, err = io.WriteString(c, http2.ClientPreface)
	must(t, err)
	f := http2.NewFramer(c, nil)
	must(t, f.WriteSettings())
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := range calls {
		block.Reset()
		for _, h := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
			{"content-type", "application/grpc"}, {"te", "trailers"}, {"containerd-namespace", one.Name},
		} {
			must(t, enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		id := uint32(1 + 2*i)
		must(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}))
		must(t, f.WriteData(id, true, b))
	}
	return func() { c.Close() }
}

// TestThousandStreamsOfOneConnection all get their answers.
func TestThousandStreamsOfOneConnection(t *testing.T) {
	s := newSite(t)
	s.works("before")
	base := measure(t)
	conn := s.dial()
	in := contentrpc.NewClient(conn)
	const streams = 1000
	writers := make([]content.Writer, streams)
	for i := range writers {
		w, err := in.In(namespace.Scope{Name: fmt.Sprintf("ns%d", i%7)}).Writer(t.Context(), content.WriterOptions{Ref: fmt.Sprint(i)})
		must(t, err)
		writers[i] = w
	}
	var wg sync.WaitGroup
	for i, w := range writers {
		wg.Go(func() {
			b := []byte(fmt.Sprintf("blob %d", i/2))
			if _, err := w.Write(b); err != nil {
				t.Errorf("Write %d: %v", i, err)
			}
			if err := w.Commit(t.Context(), int64(len(b)), digest.FromBytes(b), nil); err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Errorf("Commit %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i := range writers {
		b := []byte(fmt.Sprintf("blob %d", i/2))
		if _, err := s.store.In(namespace.Scope{Name: fmt.Sprintf("ns%d", i%7)}).Info(t.Context(), digest.FromBytes(b)); err != nil {
			t.Errorf("Info %d: %v", i, err)
		}
	}
	conn.Close()
	wantBack(t, base)
	checkFiles(t, s.store, "at the end")
}
