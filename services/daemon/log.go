package daemon

import (
	"context"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// newLog returns a logger of JSON lines whose level setLevel sets.
func newLog(w io.Writer) *slog.Logger {
	level := new(slog.LevelVar)
	return slog.New(handler{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}), level})
}

// setLevel changes the level of a logger that newLog made, and of those made
// from it; of another it cannot.
func setLevel(log *slog.Logger, level slog.Level) {
	if h, ok := log.Handler().(handler); ok {
		h.level.Set(level)
	}
}

// A handler adds the trace that a line belongs to.
type handler struct {
	slog.Handler
	level *slog.LevelVar
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		r.AddAttrs(slog.String("trace", sc.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.level}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.level}
}
