// Package contentrpc carries [content.Stores] across a socket in containerd's
// Content service: [Register] puts one on a gRPC server and [NewClient] is the
// same at the other end. It translates and does nothing else.
package contentrpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/rpc"
)

// infosMax is how many infos a message of List has at most.
const infosMax = 100

// Register puts s on a server.
func Register(r grpc.ServiceRegistrar, s content.Stores) {
	api.RegisterContentServer(r, &server{stores: s, ration: newRation()})
}

type server struct {
	api.UnsafeContentServer // a method we forget must not compile
	stores                  content.Stores
	ration                  *ration
}

func (s *server) store(ctx context.Context) (content.Store, error) {
	scope, err := rpc.Scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.stores.In(scope), nil
}

func (s *server) Info(ctx context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	info, err := store.Info(ctx, digest.Digest(req.Digest))
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Info: toInfo(info)}, nil
}

func (s *server) Update(ctx context.Context, req *api.UpdateRequest) (*api.UpdateResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	info, err := store.Update(ctx, fromInfo(req.Info), req.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateResponse{Info: toInfo(info)}, nil
}

func (s *server) List(req *api.ListContentRequest, stream api.Content_ListServer) error {
	store, err := s.store(stream.Context())
	if err != nil {
		return err
	}
	var batch []*api.Info
	size := 0
	send := func() error {
		resp := &api.ListContentResponse{Info: batch}
		batch, size = nil, 0
		return stream.Send(resp)
	}
	for info, err := range store.List(stream.Context(), req.Filters...) {
		if err != nil {
			return err
		}
		p := toInfo(info)
		more := proto.Size(p)
		if len(batch) == infosMax || len(batch) > 0 && size+more > small {
			if err := send(); err != nil {
				return err
			}
		}
		batch = append(batch, p)
		size += more
	}
	if len(batch) == 0 {
		return nil
	}
	return send()
}

func (s *server) Delete(ctx context.Context, req *api.DeleteContentRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.Delete(ctx, digest.Digest(req.Digest)); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// Read sends offsets that count from the beginning of what was asked for, as
// containerd does.
func (s *server) Read(req *api.ReadContentRequest, stream api.Content_ReadServer) error {
	store, err := s.store(stream.Context())
	if err != nil {
		return err
	}
	r, err := store.Open(stream.Context(), digest.Digest(req.Digest))
	if err != nil {
		return err
	}
	defer r.Close()
	from := max(req.Offset, 0)
	if from > r.Size() {
		return fmt.Errorf("read past object length %d bytes: %w", r.Size(), errdefs.ErrOutOfRange)
	}
	size := r.Size() - from
	if req.Size > 0 {
		size = min(size, req.Size)
	}
	share := s.ration.share()
	defer share.end()
	for sent := int64(0); sent < size; {
		pool, want := share.next(sent, size-sent)
		p := pool.Get(want)
		if n, err := r.ReadAt(*p, from+sent); n < want {
			pool.Put(p)
			return readError(req.Digest, err)
		}
		if err := stream.SendMsg(newReadResponse(sent, mem.NewBuffer(p, pool))); err != nil {
			return err
		}
		sent += int64(want)
	}
	return nil
}

// readError is the error for a blob that ends before its size.
func readError(d string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("blob %s ends early: %w", d, errdefs.ErrDataLoss)
	}
	return err
}

func (s *server) Status(ctx context.Context, req *api.StatusRequest) (*api.StatusResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	st, err := store.Status(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	return &api.StatusResponse{Status: toStatus(st)}, nil
}

func (s *server) ListStatuses(ctx context.Context, req *api.ListStatusesRequest) (*api.ListStatusesResponse, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	all, err := store.ListStatuses(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	resp := &api.ListStatusesResponse{}
	for _, st := range all {
		resp.Statuses = append(resp.Statuses, toStatus(st))
	}
	return resp, nil
}

func (s *server) Abort(ctx context.Context, req *api.AbortRequest) (*emptypb.Empty, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	if err := store.Abort(ctx, req.Ref); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// Write holds the ref for as long as the stream lives. A stream that is closed
// or breaks off without a commit leaves the ingest to be resumed.
func (s *server) Write(stream api.Content_WriteServer) (err error) {
	store, err := s.store(stream.Context())
	if err != nil {
		return err
	}
	req := new(writeRequest)
	defer req.free()
	if err := stream.RecvMsg(req); err != nil {
		return end(err)
	}
	if req.Ref == "" {
		return fmt.Errorf("first message must have a reference: %w", errdefs.ErrInvalidArgument)
	}
	w, err := store.Writer(stream.Context(), content.WriterOptions{
		Ref:      req.Ref,
		Total:    req.Total,
		Expected: digest.Digest(req.Expected),
	})
	if err != nil {
		return err
	}
	defer func() {
		// A client that leaves an ingest is told if it is not kept.
		if e := w.Close(); err == nil {
			err = e
		}
	}()
	in := &writing{store: store, w: w}
	for {
		if err := in.answer(stream.Context(), &req.WriteContentRequest); err != nil {
			return err
		}
		if err := stream.Send(&in.resp); err != nil || req.Action == api.WriteAction_COMMIT {
			return err
		}
		if err := stream.RecvMsg(req); err != nil {
			return end(err)
		}
	}
}

// end is how a stream ends that its client closed.
func end(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// writing is the state of a Write.
type writing struct {
	store    content.Store
	w        content.Writer
	total    int64         // what was said last
	expected digest.Digest // what was said last

	// resp is one for all answers: what an answer does not set is what the
	// one before it set.
	resp api.WriteContentResponse
}

// answer does what a message asks for and fills in the response.
func (in *writing) answer(ctx context.Context, req *api.WriteContentRequest) error {
	st, err := in.w.Status(ctx)
	if err != nil {
		return err
	}
	in.resp.Action = req.Action
	in.resp.Offset = st.Offset
	if req.Expected != "" {
		in.expected = digest.Digest(req.Expected)
		if err := in.exists(ctx); err != nil {
			return err
		}
	}
	if req.Total > 0 {
		in.total = req.Total
	}
	switch req.Action {
	case api.WriteAction_STAT:
		in.resp.StartedAt = toTime(st.StartedAt)
		in.resp.UpdatedAt = toTime(st.UpdatedAt)
		if in.resp.Total = in.total; in.total == 0 {
			in.resp.Total = st.Total
		}
	case api.WriteAction_WRITE, api.WriteAction_COMMIT:
		if err := in.write(ctx, req); err != nil {
			return err
		}
	}
	if req.Action == api.WriteAction_COMMIT {
		if err := in.w.Commit(ctx, in.total, in.expected, req.Labels); err != nil {
			return err
		}
	}
	in.resp.Digest = in.w.Digest().String()
	return nil
}

// exists is [errdefs.ErrAlreadyExists] if the namespace has the expected blob,
// and then has ended the ingest.
func (in *writing) exists(ctx context.Context) error {
	_, err := in.store.Info(ctx, in.expected)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err == nil {
		// It asks for no bytes, and the blob joins the lease.
		err = in.w.Commit(ctx, 0, in.expected, nil)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("blob with expected digest %s exists: %w", in.expected, errdefs.ErrAlreadyExists)
}

// write appends the data of a message. One that names no offset, or 0, starts
// over, a commit too.
func (in *writing) write(ctx context.Context, req *api.WriteContentRequest) error {
	if req.Offset > 0 && req.Offset != in.resp.Offset {
		return fmt.Errorf("write @%d must occur at current offset %d: %w", req.Offset, in.resp.Offset, errdefs.ErrOutOfRange)
	}
	if req.Offset == 0 && in.resp.Offset > 0 {
		if err := in.w.Truncate(ctx, 0); err != nil {
			return err
		}
		in.resp.Offset = 0
	}
	if len(req.Data) == 0 {
		return nil
	}
	n, err := in.w.Write(req.Data)
	if err != nil {
		return err
	}
	in.resp.Offset += int64(n)
	return nil
}
