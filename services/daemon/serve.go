package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/suite/suiterpc"
)

// drainTime is how long calls in flight have to finish.
const drainTime = 10 * time.Second

// A Serving is a daemon that is ready to answer.
type Serving struct {
	Name      string // of the daemon
	Common    Common
	Server    *rpc.Server    // with everything of the daemon's own registered
	Listeners []net.Listener // on which it answers; Serve closes them
	Plugins   []suite.Plugin // what the daemon tells of its parts
	Log       *slog.Logger

	// Outbox says what of the daemon's events the bus has not taken yet; nil of
	// a daemon that has none.
	Outbox func() (suite.Outbox, error)

	// Health is the daemon's own health service, if it has more to say than
	// that it serves. It may be nil.
	Health *health.Server
}

// Serve serves until ctx ends, then drains: readiness is withdrawn, calls in
// flight finish or are cut after drainTime, the works end last. A work runs
// until its context ends; one that returns earlier stops the daemon. The error
// is the first that a work or a listener met.
//
// Health, the daemon's description and, if the config asks for it, metrics are
// served too.
func Serve(ctx context.Context, s Serving, work ...func(context.Context) error) error {
	hs := s.Health
	if hs == nil {
		hs = health.NewServer()
	}
	healthpb.RegisterHealthServer(s.Server, hs)
	suiterpc.Register(s.Server, newSelf(s))
	for service := range s.Server.GetServiceInfo() {
		hs.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
	}
	if s.Common.Metrics {
		lis, err := ListenAt(s.Common, s.Name+".metrics", suite.Socket(s.Common.Sockets, s.Name+".metrics"))
		if err != nil {
			for _, lis := range s.Listeners {
				lis.Close()
			}
			return err
		}
		work = append(work, s.metrics(lis))
	}

	work = append(work, rest)
	workCtx, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	running := len(work) + len(s.Listeners)
	ended := make(chan error, running)
	for _, w := range work {
		go func() { ended <- w(workCtx) }()
	}
	for _, lis := range s.Listeners {
		go func() { ended <- s.Server.Serve(lis) }()
	}
	notify(s.Log, sd.SdNotifyReady)
	s.Log.Info("ready", "version", Version())

	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		running--
	}

	// The order is the promise: a call in flight still has the daemon's works.
	notify(s.Log, sd.SdNotifyStopping)
	s.Log.Info("stopping")
	hs.Shutdown()
	if !s.Server.Drain(drainTime) {
		s.Log.Warn("some calls did not end")
	}
	stopWork()
	for range running {
		if e := <-ended; err == nil && !errors.Is(e, context.Canceled) {
			err = e
		}
	}
	return err
}

// notify tells systemd, if it is there.
func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("systemd was not told", "state", state, "err", err)
	}
}

// metrics returns the work that serves Prometheus metrics on lis.
func (s Serving) metrics(lis net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.Server.Metrics, promhttp.HandlerOpts{}))
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		stop := context.AfterFunc(ctx, func() { srv.Close() })
		defer stop()
		if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("metrics: %w", err)
		}
		return ctx.Err()
	}
}
