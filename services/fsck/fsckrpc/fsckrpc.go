// Package fsckrpc carries [fsck.Checker] across a socket: [Register] puts one on
// a gRPC server and [NewClient] is the same at the other end.
package fsckrpc

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"

	fsckv1 "github.com/gantryd/gantry/proto/gantry/fsck/v1"
	"github.com/gantryd/gantry/services/fsck"
)

// Register puts c on a server.
func Register(r grpc.ServiceRegistrar, c fsck.Checker) {
	fsckv1.RegisterCheckerServer(r, &server{checker: c})
}

type server struct {
	fsckv1.UnsafeCheckerServer // a method we forget must not compile
	checker                    fsck.Checker
}

func (s *server) Check(req *fsckv1.CheckRequest, stream grpc.ServerStreamingServer[fsckv1.CheckResponse]) error {
	for item, err := range s.checker.Check(stream.Context(), fsck.Options{
		Deep:   req.GetDeep(),
		Repair: req.GetRepair(),
		Rate:   req.GetRateBytesPerSecond(),
		Only:   req.GetOnly(),
	}) {
		if err != nil {
			return err
		}
		if err := stream.Send(toItem(item)); err != nil {
			return err
		}
	}
	return nil
}

// NewClient returns the checker at the other end of c.
func NewClient(c grpc.ClientConnInterface) fsck.Checker {
	return client{c: fsckv1.NewCheckerClient(c)}
}

type client struct{ c fsckv1.CheckerClient }

func (c client) Check(ctx context.Context, o fsck.Options) iter.Seq2[fsck.Item, error] {
	return func(yield func(fsck.Item, error) bool) {
		// A caller who has enough ends the check at the other end too.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.c.Check(ctx, &fsckv1.CheckRequest{
			Deep:               o.Deep,
			Repair:             o.Repair,
			RateBytesPerSecond: o.Rate,
			Only:               o.Only,
		})
		for err == nil {
			var resp *fsckv1.CheckResponse
			if resp, err = stream.Recv(); err == nil && !yield(fromItem(resp), nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(fsck.Item{}, err)
		}
	}
}

func toItem(i fsck.Item) *fsckv1.CheckResponse {
	p := i.Progress
	resp := &fsckv1.CheckResponse{Progress: &fsckv1.Progress{
		Records: p.Records, Objects: p.Objects, ObjectsTotal: p.ObjectsTotal, Bytes: p.Bytes, BytesTotal: p.BytesTotal,
	}}
	if f := i.Finding; f != nil {
		resp.Finding = &fsckv1.Finding{
			Severity: string(f.Severity), What: f.What, Id: f.ID, Where: f.Where, Why: f.Why, Done: f.Done,
		}
		for _, r := range f.Refs {
			resp.Finding.Refs = append(resp.Finding.Refs, &fsckv1.Ref{Namespace: r.Namespace, Kind: r.Kind, Id: r.ID})
		}
	}
	return resp
}

func fromItem(resp *fsckv1.CheckResponse) fsck.Item {
	p := resp.GetProgress()
	i := fsck.Item{Progress: fsck.Progress{
		Records: p.GetRecords(), Objects: p.GetObjects(), ObjectsTotal: p.GetObjectsTotal(), Bytes: p.GetBytes(), BytesTotal: p.GetBytesTotal(),
	}}
	if f := resp.GetFinding(); f != nil {
		i.Finding = &fsck.Finding{
			Severity: fsck.Severity(f.GetSeverity()), What: f.GetWhat(), ID: f.GetId(), Where: f.GetWhere(), Why: f.GetWhy(), Done: f.GetDone(),
		}
		for _, r := range f.GetRefs() {
			i.Finding.Refs = append(i.Finding.Refs, fsck.Ref{Namespace: r.GetNamespace(), Kind: r.GetKind(), ID: r.GetId()})
		}
	}
	return i
}
