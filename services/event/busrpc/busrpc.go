// Package busrpc carries an [event.Reporter] across a socket: [Register] puts
// one on a gRPC server and [NewClient] is the same at the other end. It
// translates and does nothing else.
package busrpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	busv1 "github.com/gantryd/gantry/proto/gantry/bus/v1"
	"github.com/gantryd/gantry/services/event"
)

// Register puts r on a server.
func Register(s grpc.ServiceRegistrar, r event.Reporter) {
	busv1.RegisterBusServer(s, &server{reporter: r})
}

type server struct {
	busv1.UnsafeBusServer // a method we forget must not compile
	reporter              event.Reporter
}

func (s *server) Status(ctx context.Context, _ *busv1.StatusRequest) (*busv1.StatusResponse, error) {
	st, err := s.reporter.Status(ctx)
	if err != nil {
		return nil, err
	}
	resp := &busv1.StatusResponse{
		Stream: &busv1.Stream{
			Epoch: st.Stream.Epoch, First: st.Stream.First, Last: st.Stream.Last,
			Bytes: st.Stream.Bytes, BytesMax: st.Stream.BytesMax,
			AgeMax: durationpb.New(st.Stream.AgeMax), Oldest: toTime(st.Stream.Oldest),
		},
		Connections: int64(st.Connections), ConnectionsMax: int64(st.ConnectionsMax),
	}
	for _, r := range st.Readers {
		resp.Readers = append(resp.Readers, &busv1.Reader{
			Plugin: r.Plugin, Name: r.Name, Epoch: r.Cursor.Epoch, Sequence: r.Cursor.Sequence,
			Lag: r.Lag, Gaps: r.Gaps, Seen: toTime(r.Seen),
		})
	}
	for _, g := range st.Gates {
		resp.Gates = append(resp.Gates, &busv1.Gate{Name: g.Name, Plugins: g.Plugins, Present: g.Present})
	}
	for _, p := range st.Peers {
		resp.Peers = append(resp.Peers, &busv1.Peer{
			Name: p.Name, Connections: int64(p.Connections), Subscriptions: int64(p.Subscriptions), Pending: p.Pending,
		})
	}
	return resp, nil
}

// NewClient returns the reporter at the other end of c.
func NewClient(c grpc.ClientConnInterface) event.Reporter {
	return client{c: busv1.NewBusClient(c)}
}

type client struct{ c busv1.BusClient }

// Status implements event.Reporter.
func (c client) Status(ctx context.Context) (event.Status, error) {
	resp, err := c.c.Status(ctx, &busv1.StatusRequest{})
	if err != nil {
		return event.Status{}, err
	}
	s := resp.GetStream()
	st := event.Status{
		Stream: event.Stream{
			Epoch: s.GetEpoch(), First: s.GetFirst(), Last: s.GetLast(),
			Bytes: s.GetBytes(), BytesMax: s.GetBytesMax(),
			AgeMax: s.GetAgeMax().AsDuration(), Oldest: fromTime(s.GetOldest()),
		},
		Connections: int(resp.GetConnections()), ConnectionsMax: int(resp.GetConnectionsMax()),
	}
	for _, r := range resp.GetReaders() {
		st.Readers = append(st.Readers, event.Reader{
			Plugin: r.GetPlugin(), Name: r.GetName(), Cursor: event.Cursor{Epoch: r.GetEpoch(), Sequence: r.GetSequence()},
			Lag: r.GetLag(), Gaps: r.GetGaps(), Seen: fromTime(r.GetSeen()),
		})
	}
	for _, g := range resp.GetGates() {
		st.Gates = append(st.Gates, event.Gate{Name: g.GetName(), Plugins: g.GetPlugins(), Present: g.GetPresent()})
	}
	for _, p := range resp.GetPeers() {
		st.Peers = append(st.Peers, event.Peer{
			Name: p.GetName(), Connections: int(p.GetConnections()), Subscriptions: int(p.GetSubscriptions()), Pending: p.GetPending(),
		})
	}
	return st, nil
}

// toTime leaves a time out that is none.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
