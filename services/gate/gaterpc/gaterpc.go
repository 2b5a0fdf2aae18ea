// Package gaterpc carries a [gate.Lobby] across a socket: [Register] puts one on
// a gRPC server and [NewClient] is the same at the other end. It translates and
// does nothing else.
package gaterpc

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	gatev1 "github.com/gantryd/gantry/proto/gantry/gate/v1"
	"github.com/gantryd/gantry/services/gate"
)

// batch is how many waits are in a message.
const batch = 1000

// Register puts l on a server.
func Register(s grpc.ServiceRegistrar, l gate.Lobby) {
	gatev1.RegisterLobbyServer(s, &server{lobby: l})
}

type server struct {
	gatev1.UnsafeLobbyServer // a method we forget must not compile
	lobby                    gate.Lobby
}

func (s *server) Waiting(_ *gatev1.WaitingRequest, stream gatev1.Lobby_WaitingServer) error {
	all, err := s.lobby.Waiting(stream.Context())
	if err != nil {
		return err
	}
	for some := range slices.Chunk(all, batch) {
		resp := &gatev1.WaitingResponse{}
		for _, w := range some {
			resp.Waits = append(resp.Waits, &gatev1.Wait{
				Gate: w.Gate, Namespace: w.Namespace, Container: w.Container, Since: timestamppb.New(w.Since),
			})
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

// NewClient returns the lobby at the other end of c.
func NewClient(c grpc.ClientConnInterface) gate.Lobby {
	return client{c: gatev1.NewLobbyClient(c)}
}

type client struct{ c gatev1.LobbyClient }

// Waiting implements gate.Lobby.
func (c client) Waiting(ctx context.Context) ([]gate.Wait, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.c.Waiting(ctx, &gatev1.WaitingRequest{})
	if err != nil {
		return nil, err
	}
	var all []gate.Wait
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		for _, w := range resp.GetWaits() {
			all = append(all, gate.Wait{
				Gate: w.GetGate(), Namespace: w.GetNamespace(), Container: w.GetContainer(), Since: w.GetSince().AsTime(),
			})
		}
	}
}
