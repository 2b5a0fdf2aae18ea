package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// heldMax is how many calls wait for one backend at a time. More are refused at
// once.
const heldMax = 4096

// A Backend is a daemon to which calls are passed on as they came.
type Backend struct {
	name string
	conn *grpc.ClientConn
	wait wait
	held atomic.Int64
}

// DialBackend returns the named daemon behind a unix socket. It does not wait
// for it. A call is held for it as long as hold, or until its deadline.
func DialBackend(name, socket string, hold time.Duration, o ...grpc.DialOption) (*Backend, error) {
	conn, err := grpc.NewClient(target, append(append(dialOptions(socket),
		grpc.WithIdleTimeout(0),
	), o...)...)
	if err != nil {
		return nil, err
	}
	return &Backend{name: name, conn: conn, wait: wait{socket: socket, patience: hold}}, nil
}

// Name returns the daemon's name.
func (b *Backend) Name() string { return b.name }

// Close ends the connection and every call on it.
func (b *Backend) Close() error { return b.conn.Close() }

// Watch keeps the connection up and tells when it comes and goes, until ctx
// ends. It first tells that the daemon is away.
func (b *Backend) Watch(ctx context.Context, tell func(up bool)) error {
	up := false
	tell(up)
	for {
		state := b.conn.GetState()
		if state == connectivity.Idle {
			b.conn.Connect()
		}
		if now := state == connectivity.Ready; now != up {
			up = now
			tell(up)
		}
		if !b.conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

// open begins a call.
func (b *Backend) open(ctx context.Context, desc *grpc.StreamDesc, method string) (cs grpc.ClientStream, err error) {
	if b.conn.GetState() != connectivity.Ready {
		defer b.held.Add(-1)
		if b.held.Add(1) > heldMax {
			return nil, fmt.Errorf("%s is away and %d calls wait for it: %w", b.name, heldMax, errdefs.ErrUnavailable)
		}
	}
	err = b.wait.until(ctx, b.conn, func() (bool, error) {
		cs, err = b.conn.NewStream(ctx, desc, method)
		return cs != nil, err
	})
	return cs, err
}

// anyStream is the most general kind of call. On the wire a unary one is a
// stream of one message each way.
var anyStream = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}

// kindOf returns what kind of call a method is, where this process knows it. One
// message needs no goroutine to be passed on, and goes in one piece with the end
// of its stream.
func kindOf(method string) *grpc.StreamDesc {
	service, name := split(method)
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	if err != nil {
		return anyStream
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return anyStream
	}
	return &grpc.StreamDesc{ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer()}
}

// PassThrough are options of [NewServer]: what is not registered on the server
// goes to the backend of its service, byte for byte. Headers, messages, half
// close, trailers, status details, deadline and cancellation pass as they come;
// nothing is decoded, and no message is kept longer than it takes to send it
// on.
//
// A service without a backend is unknown. A call whose backend did not come
// back in time ends with what away makes of it.
func PassThrough(route func(service string) *Backend, away func(daemon, method string) error) []grpc.ServerOption {
	p := passThrough{route: route, away: away}
	return []grpc.ServerOption{
		grpc.UnknownServiceHandler(p.handle),
	}
}

type passThrough struct {
	route func(service string) *Backend
	away  func(daemon, method string) error
}

func (p passThrough) handle(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	service, _ := split(method)
	b := p.route(service)
	if b == nil {
		return fmt.Errorf("unknown service %s: %w", service, errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, passed(md))
	}
	kind := kindOf(method)
	cs, err := b.open(ctx, kind, method)
	if err != nil {
		if errdefs.IsUnavailable(err) {
			return p.away(b.name, method)
		}
		return err
	}
	if !kind.ClientStreams {
		if err := ask(ss, cs); err != nil {
			return err
		}
	} else {
		// The goroutine reads from ss, which ends when this function returns: it
		// outlives the call by no more than that.
		go func() {
			if err := up(ss, cs); err != nil {
				cancel(err)
			}
		}()
	}
	if !kind.ServerStreams {
		err = answer(ss, cs)
	} else {
		err = down(ss, cs)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && ss.Context().Err() == nil {
		return cause // what went wrong on the way up
	}
	return err
}

// passed returns the headers that belong to the call and not to a connection.
func passed(md metadata.MD) metadata.MD {
	out := make(metadata.MD, len(md))
	for k, v := range md {
		switch {
		case strings.HasPrefix(k, ":"), k == "content-type", k == "user-agent", k == "te",
			strings.HasPrefix(k, "grpc-") && !strings.HasSuffix(k, "-bin"):
		default:
			out[k] = v
		}
	}
	return out
}

// up passes a caller's messages on until it closes its half. An error is of
// the caller's side, or of a message that cannot be sent.
func up(ss grpc.ServerStream, cs grpc.ClientStream) error {
	for {
		var m frame
		if err := ss.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return cs.CloseSend()
			}
			return err
		}
		if err := cs.SendMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the backend has ended the call, and down says how
			}
			return err
		}
	}
}

// ask passes a caller's only message on, or that there is none.
func ask(ss grpc.ServerStream, cs grpc.ClientStream) error {
	var m frame
	err := ss.RecvMsg(&m)
	if errors.Is(err, io.EOF) {
		return cs.CloseSend()
	}
	if err == nil {
		err = cs.SendMsg(&m)
	}
	if errors.Is(err, io.EOF) {
		return nil // the backend has ended the call, and answer says how
	}
	return err
}

// answer passes on a backend's headers, only message, trailers and status, in
// one piece.
func answer(ss grpc.ServerStream, cs grpc.ClientStream) error {
	var m frame
	err := cs.RecvMsg(&m)
	if header, e := cs.Header(); e == nil && header != nil {
		if e := ss.SetHeader(passed(header)); e != nil {
			return e
		}
	}
	ss.SetTrailer(cs.Trailer())
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	return ss.SendMsg(&m)
}

// down passes a backend's headers, messages, trailers and status on. Headers
// go when they come, also if no message follows for a long time.
func down(ss grpc.ServerStream, cs grpc.ClientStream) error {
	header, err := cs.Header()
	if err == nil && header != nil {
		if err := ss.SendHeader(passed(header)); err != nil {
			return err
		}
	}
	for {
		var m frame
		if err := cs.RecvMsg(&m); err != nil {
			ss.SetTrailer(cs.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := ss.SendMsg(&m); err != nil {
			return err
		}
	}
}
