package eventrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	shimpb "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantryd/gantry/services/event"
)

// shimDrain is how long shims' calls may take when the bus stops.
const shimDrain = time.Second

// ServeShims serves the ttrpc Events service, by which shims tell of what
// happens, on lis until ctx ends. Shims run as root: nobody but root and the
// bus's own user is let in.
func ServeShims(ctx context.Context, lis net.Listener, p event.Publisher) error {
	srv, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixCredentialsFunc(mayForward)))
	if err != nil {
		lis.Close()
		return err
	}
	shimpb.RegisterTTRPCEventsService(srv, &shimServer{publisher: p})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(ctx), lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("shims' events: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), shimDrain)
	defer cancel()
	if srv.Shutdown(drain) != nil {
		srv.Close()
	}
	if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
		return fmt.Errorf("shims' events: %w", err)
	}
	return ctx.Err()
}

func mayForward(peer *unix.Ucred) error {
	if peer.Uid == 0 || int(peer.Uid) == os.Geteuid() {
		return nil
	}
	return fmt.Errorf("uid %d may not tell of tasks: %w", peer.Uid, errdefs.ErrPermissionDenied)
}

type shimServer struct{ publisher event.Publisher }

// Forward returns when the event has its place in the order: a shim sends its
// next only then.
func (s *shimServer) Forward(ctx context.Context, req *shimpb.ForwardRequest) (*emptypb.Empty, error) {
	if err := forward(ctx, s.publisher, req.Envelope); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &emptypb.Empty{}, nil
}
