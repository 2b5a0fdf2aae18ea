package rpc

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// toWire is what a server sends for a handler's error.
func toWire(err error) error {
	// A status that was wrapped on its way would lose the wrapping's kind:
	// only one that is bare is passed on as it is.
	if _, bare := err.(interface{ GRPCStatus() *status.Status }); bare {
		return err
	}
	return short(errgrpc.ToGRPC(err))
}

// textMax is how long an error is at most, in bytes. It travels in a header, of
// which many clients take no more than 8 KiB.
const textMax = 4 << 10

// short cuts an error that is too long, as one is that quotes a megabyte of its
// caller's. What it begins with and its kind, which is its end, stay.
func short(err error) error {
	st, ok := status.FromError(err)
	if !ok || proto.Size(st.Proto()) <= textMax {
		return err
	}
	text := st.Message()
	if len(text) > textMax {
		text = text[:textMax*3/4] + " ... " + text[len(text)-textMax/8:]
	}
	return status.Error(st.Code(), strings.ToValidUTF8(text, ""))
}

// born says whether an internal error comes from a handler here, not from
// another daemon's answer.
func born(err error) bool {
	if _, passedOn := status.FromError(err); passedOn {
		return false
	}
	kind := errdefs.Resolve(err)
	return errdefs.IsInternal(kind) || errdefs.IsUnknown(kind) || errdefs.IsDataLoss(kind)
}

// fromWire is the error that a client's caller gets.
func fromWire(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return errgrpc.ToNative(err)
}

func translateUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	return fromWire(invoke(ctx, method, req, reply, cc, o...))
}

func translateStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	cs, err := open(ctx, desc, cc, method, o...)
	if err != nil {
		return nil, fromWire(err)
	}
	return translatedStream{cs}, nil
}

// A translatedStream is a client's stream whose errors have kinds.
type translatedStream struct{ grpc.ClientStream }

func (s translatedStream) RecvMsg(m any) error { return fromWire(s.ClientStream.RecvMsg(m)) }
func (s translatedStream) SendMsg(m any) error { return fromWire(s.ClientStream.SendMsg(m)) }
func (s translatedStream) CloseSend() error    { return fromWire(s.ClientStream.CloseSend()) }

// unavailable says whether err, of either side of the wire, means that the peer
// is not there.
func unavailable(err error) bool {
	return errdefs.IsUnavailable(fromWire(err))
}
