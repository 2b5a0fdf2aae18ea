package contentd

import (
	"context"
	"errors"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// opensFile is opens for a client that writes the file itself.
func opensFile(scope namespace.Scope, ref string, expected digest.Digest) step {
	return func(sc *scene) error {
		delete(sc.told.ingests, ref)
		w, err := sc.s.Files(scope).FileWriter(sc.ctx, content.WriterOptions{Ref: ref, Expected: expected})
		if err == nil {
			sc.writers[ref] = &lentWriter{ctx: sc.ctx, l: w.(*fileWriter)}
			sc.told.refs[ref] = scope
		}
		return err
	}
}

// A lentWriter is a client with a file, as a writer.
type lentWriter struct {
	ctx context.Context
	l   *fileWriter
	f   *os.File
}

func (w *lentWriter) Write(b []byte) (int, error) {
	st, err := w.l.Status(w.ctx)
	if err == nil && w.f == nil {
		w.f, err = w.l.File(w.ctx)
	}
	if err != nil {
		return 0, err
	}
	return w.f.WriteAt(b, st.Offset)
}

func (w *lentWriter) Status(ctx context.Context) (content.Status, error) { return w.l.Status(ctx) }

func (w *lentWriter) Digest() digest.Digest {
	d, err := w.l.Digest(w.ctx)
	if err != nil {
		return ""
	}
	return d
}

func (w *lentWriter) Truncate(ctx context.Context, size int64) error { return w.l.Truncate(ctx, size) }

func (w *lentWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	return errors.Join(w.closeLent(), w.l.Commit(ctx, size, expected, labels))
}

func (w *lentWriter) Close() error { return errors.Join(w.closeLent(), w.l.Close()) }

func (w *lentWriter) closeLent() error {
	if w.f == nil {
		return nil
	}
	defer func() { w.f = nil }()
	return w.f.Close()
}

// closeFile is what a kill of both does.
func (w *lentWriter) closeFile() {
	_ = w.closeLent()
	w.l.w.closeFile()
}
