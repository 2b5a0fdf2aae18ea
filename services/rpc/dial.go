package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
)

// Dial returns a connection to the gRPC server on a unix socket. It does not
// wait for it. A call waits up to PeerWait, or until its deadline, for a peer
// that is not there, as while it restarts, and is then [errdefs.ErrUnavailable].
func Dial(socket string, o ...grpc.DialOption) (*grpc.ClientConn, error) {
	w := wait{socket: socket, patience: PeerWait}
	return grpc.NewClient(target, append(append(dialOptions(socket),
		grpc.WithChainUnaryInterceptor(w.unary, translateUnary),
		grpc.WithChainStreamInterceptor(w.stream, translateStream),
	), o...)...)
}

// target is the same for every socket: the dialer knows the path, which need
// not be spelled as a URL.
const target = "passthrough:///gantry"

// dialOptions are those of every connection between daemons.
func dialOptions(socket string) []grpc.DialOption {
	return append(clientTracing(),
		grpc.WithTransportCredentials(peerCredentials{}),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MessageMax), grpc.MaxCallSendMsgSize(MessageMax), grpc.ForceCodecV2(newCodec())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		// A failed connect to a unix socket costs microseconds, and a caller
		// waits for the next.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithInitialWindowSize(window),
		grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithWriteBufferSize(buffer),
	)
}

// A wait is the patience of callers with the peer behind a socket.
type wait struct {
	socket   string
	patience time.Duration
}

func (w wait) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	return w.until(ctx, cc, func() (bool, error) {
		var reached peer.Peer
		err := invoke(ctx, method, req, reply, cc, append(slices.Clip(o), grpc.Peer(&reached))...)
		return reached.Addr != nil, err
	})
}

func (w wait) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (cs grpc.ClientStream, err error) {
	err = w.until(ctx, cc, func() (bool, error) {
		cs, err = open(ctx, desc, cc, method, o...)
		return cs != nil, err
	})
	return cs, err
}

// until calls try when the peer answers, and again if the peer went away before
// it was reached: then nothing of the call was sent.
func (w wait) until(ctx context.Context, cc *grpc.ClientConn, try func() (reached bool, err error)) error {
	// Nearly always it is there, and no clock has to be set.
	if cc.GetState() == connectivity.Ready {
		if reached, err := try(); reached || !unavailable(err) {
			return err
		}
	}
	over, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()
	for {
		if err := w.ready(ctx, over, cc); err != nil {
			return err
		}
		reached, err := try()
		if reached || !unavailable(err) {
			return err
		}
	}
}

// ready waits until cc is connected or over is.
func (w wait) ready(ctx, over context.Context, cc *grpc.ClientConn) error {
	for {
		state := cc.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return fmt.Errorf("connection to %s is closed: %w", w.socket, errdefs.ErrUnavailable)
		case connectivity.Idle:
			cc.Connect()
		}
		if cc.WaitForStateChange(over, state) {
			continue
		}
		if err := ctx.Err(); errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("%s does not answer: %w", w.socket, errdefs.ErrUnavailable)
	}
}
