package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/gantryd/gantry/services/suite"
)

// peerIs stands for a socket whose peer is known to be someone.
type peerIs struct {
	peerCredentials
	who Peer
}

func (p peerIs) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, p.who, nil
}

func (p peerIs) Clone() credentials.TransportCredentials { return p }

// raw speaks HTTP/2 by hand: it sends one request and returns the status that
// ends it, or "closed" if the server hangs up instead.
func raw(t *testing.T, addr string, headers [][2]string, body []byte) string {
	t.Helper()
	c, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range headers {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		f.WriteSettings(),
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: body == nil}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if body != nil {
		if err := f.WriteData(1, true, body); err != nil {
			return "closed"
		}
	}
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range fr.RegularFields() {
				if h.Name == "grpc-status" {
					return h.Value
				}
			}
			if fr.StreamEnded() {
				return "HTTP " + fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "closed"
		}
	}
}

func request(path string) [][2]string {
	return [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	}
}

// hostileServer counts the calls that reach a handler.
func hostileServer(t *testing.T, who Peer) (addr string, reached *atomic.Int64) {
	t.Helper()
	reached = new(atomic.Int64)
	srv := NewServer(suite.Contentd, slog.New(slog.DiscardHandler), grpc.Creds(peerIs{who: who}),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			reached.Add(1)
			return nil
		}))
	srv.policy.users = map[uint32]string{991: suite.Imaged}
	srv.policy.operators = map[uint32]bool{}
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "containerd.services.content.v1.Content",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Delete", ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			reached.Add(1)
			return s.RecvMsg(&frame{})
		}}},
	}, nil)
	addr = t.TempDir() + "/s"
	lis, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return addr, reached
}

const contentDelete = "/containerd.services.content.v1.Content/Delete"

func TestStrangerReachesNothingWhateverThePath(t *testing.T) {
	addr, reached := hostileServer(t, Peer{UID: 1234, GID: 1234})
	for _, path := range []string{
		contentDelete, contentDelete[1:], "/" + contentDelete, contentDelete + "/", contentDelete + "?x",
		"", "/", "*", "//", "/x", "x/y", "/grpc.health.v1.Health/Check", "/a.b/C", "%2Fa/b", "/..//a/b", "/\x00/\xff",
	} {
		if got := raw(t, addr, request(path), []byte{0, 0, 0, 0, 0}); got == "0" {
			t.Errorf("path %q was answered", path)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d calls reached a handler", n)
	}
}

func TestDaemonReachesWhatTheTableSays(t *testing.T) {
	addr, reached := hostileServer(t, Peer{UID: 991, GID: 991})
	for _, path := range []string{contentDelete[1:], "/" + contentDelete, contentDelete + "/", "/a.b/C", "/containerd.services.tasks.v1.Tasks/Create"} {
		if got := raw(t, addr, request(path), []byte{0, 0, 0, 0, 0}); got == "0" || reached.Load() != 0 {
			t.Errorf("path %q: status %s, %d calls reached a handler", path, got, reached.Load())
		}
	}
	raw(t, addr, request(contentDelete), []byte{0, 0, 0, 0, 0})
	if reached.Load() != 1 {
		t.Errorf("%s did not reach its handler", contentDelete)
	}
}

func TestOddRequestsAreRefused(t *testing.T) {
	addr, _ := hostileServer(t, Peer{UID: 0})
	large := binary.BigEndian.AppendUint32([]byte{0}, 100<<20)
	for _, c := range []struct {
		name    string
		headers [][2]string
		body    []byte
	}{
		{"a message that says it has 100 MB", request(contentDelete), append(large, 1, 2, 3)},
		{"a body shorter than its length", append(request(contentDelete), [2]string{"content-length", "100"}), []byte{0, 0, 0, 0, 9, 1}},
		{"content-length 0 with a body", append(request(contentDelete), [2]string{"content-length", "0"}), []byte{0, 0, 0, 0, 9, 1}},
		{"a compressed message", request(contentDelete), []byte{1, 0, 0, 0, 1, 0}},
		{"GET", append([][2]string{{":method", "GET"}}, request(contentDelete)[1:]...), nil},
		{"no content type", request(contentDelete)[:4], []byte{0, 0, 0, 0, 0}},
		{"two paths", append([][2]string{{":path", "/a.b/C"}}, request(contentDelete)...), []byte{0, 0, 0, 0, 0}},
	} {
		if got := raw(t, addr, c.headers, c.body); got == "0" {
			t.Errorf("%s: was answered", c.name)
		}
	}
}
