// Package backuprpc carries [backup.Keeper] across a socket: [Register] puts one
// on a gRPC server and [NewClient] is the same at the other end.
package backuprpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	backupv1 "github.com/gantryd/gantry/proto/gantry/backup/v1"
	"github.com/gantryd/gantry/services/backup"
)

// chunk is how many bytes a message has at most.
const chunk = 1 << 20

// Register puts k on a server.
func Register(r grpc.ServiceRegistrar, k backup.Keeper) {
	backupv1.RegisterKeeperServer(r, &server{keeper: k})
}

type server struct {
	backupv1.UnsafeKeeperServer // a method we forget must not compile
	keeper                      backup.Keeper
}

func (s *server) Backup(_ *backupv1.BackupRequest, stream grpc.ServerStreamingServer[backupv1.BackupResponse]) error {
	w := bufio.NewWriterSize(sender(func(p []byte) error {
		return stream.Send(&backupv1.BackupResponse{Data: p})
	}), chunk)
	if err := s.keeper.Backup(stream.Context(), w); err != nil {
		return err
	}
	return w.Flush()
}

func (s *server) Restore(stream grpc.ClientStreamingServer[backupv1.RestoreRequest, backupv1.RestoreResponse]) error {
	report, err := s.keeper.Restore(stream.Context(), &receiver{next: func() ([]byte, error) {
		req, err := stream.Recv()
		if err == nil && len(req.GetData()) > chunk {
			err = fmt.Errorf("%d bytes in one message: %w", len(req.GetData()), errdefs.ErrInvalidArgument)
		}
		return req.GetData(), err
	}})
	if err != nil {
		return err
	}
	resp := &backupv1.RestoreResponse{Records: report.Records}
	for _, c := range report.Changes {
		resp.Changes = append(resp.Changes, &backupv1.Change{What: c.What, Count: c.Count})
	}
	return stream.SendAndClose(resp)
}

// NewClient returns the keeper at the other end of c.
func NewClient(c grpc.ClientConnInterface) backup.Keeper {
	return client{c: backupv1.NewKeeperClient(c)}
}

type client struct{ c backupv1.KeeperClient }

func (c client) Backup(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // if w failed
	stream, err := c.c.Backup(ctx, &backupv1.BackupRequest{})
	for err == nil {
		var resp *backupv1.BackupResponse
		if resp, err = stream.Recv(); err == nil {
			_, err = w.Write(resp.GetData())
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (c client) Restore(ctx context.Context, r io.Reader) (backup.Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // if r failed: what was sent must not look like all
	stream, err := c.c.Restore(ctx)
	if err != nil {
		return backup.Report{}, err
	}
	w := sender(func(p []byte) error { return stream.Send(&backupv1.RestoreRequest{Data: p}) })
	// Where the other end has given up, its answer says why.
	if _, err := io.CopyBuffer(w, struct{ io.Reader }{r}, make([]byte, chunk)); err != nil && !errors.Is(err, io.EOF) {
		return backup.Report{}, err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return backup.Report{}, err
	}
	report := backup.Report{Records: resp.GetRecords()}
	for _, c := range resp.GetChanges() {
		report.Changes = append(report.Changes, backup.Change{What: c.GetWhat(), Count: c.GetCount()})
	}
	return report, nil
}

// A sender sends what is written to it, at most a chunk at once.
type sender func(p []byte) error

func (s sender) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:min(n+chunk, len(p))]
		if err = s(part); err == nil {
			n += len(part)
		}
	}
	return n, err
}

// A receiver reads what arrives.
type receiver struct {
	next func() ([]byte, error)
	rest []byte
}

func (r *receiver) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		b, err := r.next()
		if err != nil {
			return 0, err
		}
		r.rest = b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
