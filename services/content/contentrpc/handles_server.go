package contentrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	contentv1 "github.com/gantryd/gantry/proto/gantry/content/v1"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// What may be asked on the socket of files, as [rpc.Rules] has it. Whoever may
// open an ingest may do with it what he likes.
const (
	methodOpen  = "/gantry.content.v1.Handles/Open"
	methodWrite = "/gantry.content.v1.Handles/Write"
)

const (
	// handleConns and handleUserConns are how many connections there are at
	// most, in all and of one user. Each is one request in flight, one ingest
	// and one file on its way, at most.
	handleConns, handleUserConns = 256, 192

	// handleIdle is how long a connection without an ingest waits for a
	// request.
	handleIdle = time.Minute

	// handleSend is how long a peer has to take an answer.
	handleSend = 10 * time.Second

	// handleDrain is how long requests have to end when the daemon does.
	handleDrain = 10 * time.Second

	// textMax is how much of an error is told.
	textMax = 8 << 10
)

// A HandleServer hands out the files of stores.
type HandleServer struct {
	Stores content.FileStores
	Guard  rpc.Guard

	// Store is what clients call the store that they mean, who could have come
	// to another one by mistake. To those who call it nothing it is any.
	Store string

	Log *slog.Logger
}

// Serve answers on lis, a socket of package fdpass, until ctx ends. It is a work
// of the daemon's.
func (s *HandleServer) Serve(ctx context.Context, lis net.Listener) error {
	server := fdpass.Server{
		ConnsMax:     handleConns,
		ConnsUserMax: handleUserConns,
		DrainTime:    handleDrain,
		Admit:        s.admit,
		Log:          s.Log,
	}
	return server.Serve(ctx, lis)
}

// admit lets in whoever may ask for anything.
func (s *HandleServer) admit(c *net.UnixConn) (fdpass.Admitted, error) {
	who, err := s.Guard.Identify(c)
	if err != nil {
		return fdpass.Admitted{}, err
	}
	err = s.Guard.Check(who, methodOpen)
	if err != nil && s.Guard.Check(who, methodWrite) != nil {
		return fdpass.Admitted{}, err
	}
	return fdpass.Admitted{User: who.UID, Talk: func(ctx context.Context, c *fdpass.Conn) {
		t := &handleTalk{server: s, who: who, conn: c}
		if err := t.run(ctx); err != nil && !errors.Is(err, io.EOF) {
			s.Log.Debug("a connection for files broke off", "uid", who.UID, "err", err)
		}
	}}, nil
}

// A handleTalk is one connection, and the ingest that is open on it.
type handleTalk struct {
	server *HandleServer
	who    rpc.Peer
	conn   *fdpass.Conn
	cancel context.CancelFunc // of the connection's context
	writer content.FileWriter // nil if none is open
}

// run answers until the peer is gone. Its ingest is left then.
func (t *handleTalk) run(ctx context.Context) error {
	ctx, t.cancel = context.WithCancel(ctx)
	defer t.cancel()
	defer func() {
		if t.writer == nil {
			return
		}
		if err := t.writer.Close(); err != nil {
			t.server.Log.Warn("an ingest whose writer went away is not kept well", "err", err)
		}
	}()
	for {
		deadline := time.Time{}
		if t.writer == nil {
			deadline = time.Now().Add(handleIdle)
		}
		t.conn.SetDeadline(deadline)
		packet, f, err := t.conn.Receive()
		if f != nil {
			f.Close()
			return fmt.Errorf("a file came with a request: %w", fdpass.ErrProtocol)
		}
		if err != nil {
			return err
		}
		var req contentv1.Request
		if err := proto.Unmarshal(packet, &req); err != nil {
			return fmt.Errorf("%v: %w", err, fdpass.ErrProtocol)
		}
		if err := t.send(t.answer(ctx, &req)); err != nil {
			return err
		}
	}
}

// send sends an answer with its file, if it has one, which is closed.
func (t *handleTalk) send(resp *contentv1.Response, f *os.File) error {
	if f != nil {
		defer f.Close()
	}
	resp.Answered = true
	packet, err := proto.Marshal(resp)
	if err != nil {
		return err
	}
	t.conn.SetDeadline(time.Now().Add(handleSend))
	return t.conn.Send(packet, f)
}

// answer does what a request asks for.
func (t *handleTalk) answer(ctx context.Context, req *contentv1.Request) (*contentv1.Response, *os.File) {
	if req.Store != "" && req.Store != t.server.Store {
		return refused(fmt.Errorf("the store here is not %.100q: %w", req.Store, errdefs.ErrFailedPrecondition)), nil
	}
	method := methodWrite
	if req.GetOpen() != nil || req.GetOpenIngest() != nil {
		method = methodOpen
	}
	if err := t.server.Guard.Check(t.who, method); err != nil {
		return refused(err), nil
	}
	resp := &contentv1.Response{}
	var f *os.File
	var err error
	switch {
	case req.GetOpen() != nil:
		f, err = t.open(ctx, req, resp)
	case req.GetOpenIngest() != nil:
		f, err = t.openIngest(ctx, req, resp)
	case req.GetWrite() != nil:
		f, err = t.write(ctx, req, resp)
	default:
		f, err = t.proceed(ctx, req, resp)
	}
	if err != nil {
		code, text := t.server.Guard.Finish(ctx, method, err)
		resp = &contentv1.Response{Digest: resp.Digest, Error: &contentv1.Error{Code: code, Text: clip(text)}}
	}
	return resp, f
}

// refused is the answer of who would say the same to everything like it.
func refused(err error) *contentv1.Response {
	return &contentv1.Response{Error: &contentv1.Error{Text: clip(err.Error()), Refused: true}}
}

func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), textMax)], "")
}

func (t *handleTalk) files(req *contentv1.Request) (content.Files, error) {
	scope := namespace.Scope{Name: req.Namespace, Lease: req.Lease}
	if err := scope.Check(); err != nil {
		return nil, err
	}
	return t.server.Stores.Files(scope), nil
}

func (t *handleTalk) open(ctx context.Context, req *contentv1.Request, resp *contentv1.Response) (*os.File, error) {
	files, err := t.files(req)
	if err != nil {
		return nil, err
	}
	f, err := files.OpenFile(ctx, digest.Digest(req.GetOpen().Digest))
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	resp.Size = fi.Size()
	return f, nil
}

func (t *handleTalk) openIngest(ctx context.Context, req *contentv1.Request, resp *contentv1.Response) (*os.File, error) {
	files, err := t.files(req)
	if err != nil {
		return nil, err
	}
	f, st, err := files.OpenIngest(ctx, req.GetOpenIngest().Ref)
	if err != nil {
		return nil, err
	}
	resp.Status = toHandleStatus(st)
	return f, nil
}

func (t *handleTalk) write(ctx context.Context, req *contentv1.Request, resp *contentv1.Response) (*os.File, error) {
	if t.writer != nil {
		return nil, fmt.Errorf("an ingest is open on this connection: %w", errdefs.ErrFailedPrecondition)
	}
	files, err := t.files(req)
	if err != nil {
		return nil, err
	}
	// It may wait for another writer that brings the same bytes, for a client
	// that is there. The writer lives as long as the connection.
	defer t.conn.Watch(t.cancel)()
	r := req.GetWrite()
	w, err := files.FileWriter(ctx, content.WriterOptions{Ref: r.Ref, Total: r.Total, Expected: digest.Digest(r.Expected)})
	if err != nil {
		return nil, err
	}
	f, err := first(ctx, w, resp)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	t.writer = w
	return f, nil
}

// first is what a writer's client wants to have at once.
func first(ctx context.Context, w content.FileWriter, resp *contentv1.Response) (*os.File, error) {
	st, err := w.Status(ctx)
	if err != nil {
		return nil, err
	}
	resp.Status = toHandleStatus(st)
	if w.Borrows() {
		return nil, nil
	}
	return w.File(ctx)
}

// proceed goes on with the ingest that is open.
func (t *handleTalk) proceed(ctx context.Context, req *contentv1.Request, resp *contentv1.Response) (f *os.File, err error) {
	w := t.writer
	if w == nil {
		return nil, fmt.Errorf("no ingest is open on this connection: %w", errdefs.ErrFailedPrecondition)
	}
	// What may read every byte does so for a client that is there.
	switch {
	case req.GetFile() != nil:
		return w.File(ctx)
	case req.GetStatus() != nil:
		var st content.Status
		if st, err = w.Status(ctx); err == nil {
			resp.Status = toHandleStatus(st)
		}
	case req.GetDigest() != nil:
		defer t.conn.Watch(t.cancel)()
		var d digest.Digest
		d, err = w.Digest(ctx)
		resp.Digest = d.String()
	case req.GetTruncate() != nil:
		err = w.Truncate(ctx, req.GetTruncate().Size)
	case req.GetCommit() != nil:
		defer t.conn.Watch(t.cancel)()
		t.writer = nil
		c := req.GetCommit()
		err = w.Commit(ctx, c.Size, digest.Digest(c.Expected), c.Labels)
		if d, e := w.Digest(ctx); e == nil {
			resp.Digest = d.String()
		}
	case req.GetClose() != nil:
		t.writer = nil
		err = w.Close()
	default:
		err = fmt.Errorf("nothing is asked for: %w", errdefs.ErrNotImplemented)
	}
	return nil, err
}

func toHandleStatus(s content.Status) *contentv1.Status {
	return &contentv1.Status{
		Offset:   s.Offset,
		Total:    s.Total,
		Expected: s.Expected.String(),
		Started:  toTime(s.StartedAt),
		Updated:  toTime(s.UpdatedAt),
	}
}

func fromHandleStatus(ref string, p *contentv1.Status) content.Status {
	return content.Status{
		Ref:       ref,
		Offset:    p.GetOffset(),
		Total:     p.GetTotal(),
		Expected:  digest.Digest(p.GetExpected()),
		StartedAt: fromTime(p.GetStarted()),
		UpdatedAt: fromTime(p.GetUpdated()),
	}
}
