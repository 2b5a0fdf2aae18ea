package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/gantryd/gantry/services/suite"
)

// A Server is a gRPC server of one daemon.
type Server struct {
	*grpc.Server

	// Metrics is what is counted here, and whatever else the process adds.
	Metrics *prometheus.Registry

	daemon   string
	log      *slog.Logger
	policy   policy
	count    grpc.UnaryServerInterceptor
	counts   grpc.StreamServerInterceptor
	draining context.Context
	drain    context.CancelFunc
}

// endless are the calls that end only when something happens elsewhere. A
// server that stops does not wait for them: the caller asks again.
var endless = map[string]bool{
	"/containerd.services.events.v1.Events/Subscribe": true,
	"/containerd.services.sandbox.v1.Controller/Wait": true,
	"/containerd.services.tasks.v1.Tasks/Wait":        true,
	"/grpc.health.v1.Health/Watch":                    true,
}

// buckets are for calls over a unix socket: from 100 µs to 100 s.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30, 100}

// workers are goroutines that run calls one after another, on stacks that have
// grown already. A call that finds none idle gets a goroutine of its own.
const workers = 16

// NewServer returns a server of the named daemon: default deny by peer
// credentials and method, errors translated by errgrpc, tracing, metrics, and
// internal errors logged once, here.
func NewServer(daemon string, log *slog.Logger, o ...grpc.ServerOption) *Server {
	s := &Server{
		Metrics: prometheus.NewRegistry(),
		daemon:  daemon,
		log:     log,
		policy:  newPolicy(daemon, o),
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	calls := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(grpcprom.WithHistogramBuckets(buckets)))
	s.count, s.counts = calls.UnaryServerInterceptor(), calls.StreamServerInterceptor()
	s.Metrics.MustRegister(calls, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.Server = grpc.NewServer(slices.Concat(serverTracing(), []grpc.ServerOption{
		grpc.Creds(peerCredentials{}),
		grpc.MaxRecvMsgSize(MessageMax),
		grpc.MaxSendMsgSize(MessageMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Minute, Timeout: time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(connWindow),
		grpc.WriteBufferSize(buffer),
		grpc.NumStreamWorkers(workers),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(s.unknown),
		grpc.WaitForHandlers(true),
	}, o)...)
	return s
}

// Drain ends a server that serves: no call begins, those that wait for
// something to happen end with [errdefs.ErrUnavailable], the others have until
// patience is over and are cut then. It is false if some did not end even so.
func (s *Server) Drain(patience time.Duration) bool {
	s.drain()
	if within(patience, s.GracefulStop) {
		return true
	}
	// A handler that is cut returns soon, unless it is stuck in the kernel.
	return within(patience/2, s.Stop)
}

// within runs f and says whether it returned in time. One that did not is left
// behind: the process ends next.
func within(patience time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := s.policy.check(ctx, info.FullMethod); err != nil {
		return nil, toWire(err)
	}
	ctx, stop := s.bound(ctx, info.FullMethod)
	defer stop()
	return s.count(receiveTrace(ctx), req, info, func(ctx context.Context, req any) (any, error) {
		resp, err := handler(ctx, req)
		return resp, s.finish(ctx, info.FullMethod, err)
	})
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := s.policy.check(ss.Context(), info.FullMethod); err != nil {
		return toWire(err)
	}
	ctx, stop := s.bound(receiveTrace(ss.Context()), info.FullMethod)
	defer stop()
	ss = boundStream{ServerStream: ss, ctx: ctx}
	finished := func(srv any, ss grpc.ServerStream) error {
		return s.finish(ctx, info.FullMethod, handler(srv, ss))
	}
	service, _ := split(info.FullMethod)
	if _, known := suite.Owner(service); srv == nil && !known {
		// A name that a caller made up does not become a time series.
		return finished(srv, ss)
	}
	return s.counts(srv, ss, info, finished)
}

// bound returns the context of a call: an endless one ends with the server.
func (s *Server) bound(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	if !endless[method] {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.draining, cancel)
	return ctx, func() { unhook(); cancel() }
}

// finish turns the error of a handler into what the caller gets.
func (s *Server) finish(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if endless[method] && s.draining.Err() != nil {
		err = fmt.Errorf("%s is stopping: %w", s.daemon, errdefs.ErrUnavailable)
	}
	wire := toWire(err)
	if born(err) {
		s.log.ErrorContext(ctx, "call failed inside", "method", method, "err", err)
	}
	return wire
}

// unknown answers what nobody registered, after the interceptor has let it by.
func (s *Server) unknown(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	return unknownMethod(s.Server, method)
}

func unknownMethod(srv *grpc.Server, method string) error {
	service, name := split(method)
	if _, ok := srv.GetServiceInfo()[service]; ok {
		return fmt.Errorf("unknown method %s for service %s: %w", name, service, errdefs.ErrNotImplemented)
	}
	return fmt.Errorf("unknown service %s: %w", service, errdefs.ErrNotImplemented)
}

// split takes "/service/method" apart. What is not of that form has no service.
func split(method string) (service, name string) {
	rest, ok := strings.CutPrefix(method, "/")
	if !ok {
		return "", ""
	}
	service, name, ok = strings.Cut(rest, "/")
	if !ok || service == "" || name == "" || strings.Contains(name, "/") {
		return "", ""
	}
	return service, name
}

// A boundStream is a stream with the context of [Server.bound].
type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s boundStream) Context() context.Context { return s.ctx }
