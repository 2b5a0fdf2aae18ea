package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Main runs a daemon with the arguments after its name: it makes the logger,
// turns SIGTERM and SIGINT into the end of ctx, prints an error of run as one
// line, and sets the exit code. A second signal kills.
func Main(name string, args []string, run func(ctx context.Context, log *slog.Logger, args []string) error) {
	os.Exit(code(name, args, run))
}

// code exists because os.Exit skips what is deferred.
func code(name string, args []string, run func(ctx context.Context, log *slog.Logger, args []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop)
	log := newLog(os.Stderr).With("daemon", name)

	flush, err := Trace(ctx, name)
	if err == nil {
		err = run(ctx, log, args)
		flushCtx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if e := flush(flushCtx); e != nil {
			log.Warn("some spans were not exported", "err", e)
		}
	}
	if err == nil || errors.Is(err, ErrChecked) || errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
	return 1
}
