//go:build linux

package contentrpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	contentv1 "github.com/gantryd/gantry/proto/gantry/content/v1"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

// FuzzHandleRequest sends packets to a store that says no to everything: what is
// answered fits into a packet, and what is asked of the store has a scope that
// was checked.
func FuzzHandleRequest(f *testing.F) {
	for _, req := range []*contentv1.Request{
		{},
		{Namespace: "ns", Action: &contentv1.Request_Open{Open: &contentv1.OpenRequest{Digest: "sha256:x"}}},
		{Namespace: "../ns", Lease: "l\x00", Action: &contentv1.Request_OpenIngest{OpenIngest: &contentv1.OpenIngestRequest{Ref: "r"}}},
		{Namespace: "ns", Store: "other", Action: &contentv1.Request_Write{Write: &contentv1.WriteRequest{Ref: "r", Total: -1}}},
		{Action: &contentv1.Request_Commit{Commit: &contentv1.CommitRequest{Size: 1 << 62, Labels: map[string]string{"": ""}}}},
	} {
		packet, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	log := slog.New(slog.DiscardHandler)
	conn := quietConn(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		var req contentv1.Request
		if proto.Unmarshal(packet, &req) != nil {
			return
		}
		talk := &handleTalk{
			server: &HandleServer{Stores: noFiles{t: t}, Guard: rpc.NewGuard(suite.Contentd, log), Store: "this", Log: log},
			who:    rpc.Peer{Own: true},
			conn:   conn,
			cancel: func() {},
		}
		resp, file := talk.answer(t.Context(), &req)
		answer, err := proto.Marshal(resp)
		if err != nil || len(answer) > fdpass.PacketMax || file != nil || resp.Error == nil {
			t.Errorf("%v: answered by %v, %d bytes, %v", &req, resp, len(answer), err)
		}
	})
}

// quietConn is a connection on which nothing is said.
func quietConn(f *testing.F) *fdpass.Conn {
	path := filepath.Join(f.TempDir(), "s")
	lis, err := net.ListenUnix(fdpass.Network, &net.UnixAddr{Name: path, Net: fdpass.Network})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { lis.Close() })
	c, err := fdpass.Dial(f.Context(), path)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	return c
}

var errNoFiles = errors.New("no files")

type noFiles struct {
	content.Stores
	t *testing.T
}

func (n noFiles) Files(scope namespace.Scope) content.Files {
	if err := scope.Check(); err != nil {
		n.t.Errorf("scope %+v: %v", scope, err)
	}
	return n
}

func (noFiles) OpenFile(context.Context, digest.Digest) (*os.File, error) { return nil, errNoFiles }

func (noFiles) OpenIngest(context.Context, string) (*os.File, content.Status, error) {
	return nil, content.Status{}, errNoFiles
}

func (noFiles) FileWriter(context.Context, content.WriterOptions) (content.FileWriter, error) {
	return nil, errNoFiles
}
