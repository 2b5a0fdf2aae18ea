// Package daemon is what every main of the suite calls: from arguments and
// signals to a served socket and back. Nothing is registered here and nothing
// calls back but what is handed in.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"google.golang.org/grpc"
)

// A Config is what every daemon's config file may say besides its own.
type Config struct {
	Sockets  string `toml:"sockets"`   // directory of every daemon's socket
	Group    string `toml:"group"`     // owns this daemon's sockets; empty is the process's
	LogLevel string `toml:"log_level"` // "debug", "info", "warn" or "error"
	Metrics  bool   `toml:"metrics"`   // serve Prometheus metrics on <sockets>/<daemon>.metrics.sock
}

// DefaultConfig is the config of a node that runs the suite under systemd.
func DefaultConfig() Config { return Config{} }

// Main runs a daemon: it makes the logger, turns SIGTERM and SIGINT into the
// end of ctx, prints an error of run as one line, and sets the exit code.
func Main(name string, run func(ctx context.Context, log *slog.Logger, args []string) error) {}

// Configure fills cfg, a pointer to a struct with its defaults, from the file
// that args name with -config (default /etc/gantry/<name>.toml, which may be
// missing), and checks it. An unknown key is an error that names file and
// line. With -check it reports and returns [ErrChecked].
func Configure(cfg interface{ Check() error }, name string, args []string) error {
	return errors.New("daemon: not written")
}

// ErrChecked says that -check was asked for and all is well. Main exits 0 on it.
var ErrChecked = errors.New("config is good")

// Listen returns the socket that systemd passed under the daemon's name, or
// binds <sockets>/<file>, 0660. A socket that somebody answers on is
// [errdefs.ErrAlreadyExists].
func Listen(cfg Config, name string) (net.Listener, error) {
	return nil, errors.New("daemon: not written")
}

// Serve serves srv on lis until ctx ends, then drains: readiness is withdrawn,
// calls in flight finish or are cut after drainTime, the works end last. A work
// runs until its context ends; one that returns earlier stops the daemon.
func Serve(ctx context.Context, srv *grpc.Server, lis net.Listener, work ...func(context.Context) error) error {
	return errors.New("daemon: not written")
}
