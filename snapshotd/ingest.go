package snapshotd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/snapshotd/arrival"
)

const (
	// commitTime is how long the content store may take to make a blob durable.
	commitTime = 5 * time.Minute

	// abortTime is how long it may take to forget what came to nothing.
	abortTime = 10 * time.Second
)

// An ingest is a blob that is being written, within a time for each step.
type ingest struct {
	ctx     context.Context
	stalled *time.Timer
	cancel  context.CancelCauseFunc

	blobs content.Store
	w     content.Writer
	ref   string
	ours  bool // the ref was made up, so nobody resumes it
}

// newIngest starts an ingest; one that has bytes of an earlier attempt is
// started over. Without a ref it makes one up. The caller closes it.
func newIngest(ctx context.Context, blobs content.Store, ref string) (*ingest, error) {
	i := &ingest{blobs: blobs, ref: ref}
	if ref == "" {
		var b [3]byte
		rand.Read(b[:])
		i.ref, i.ours = fmt.Sprintf("%d-%s", time.Now().UnixNano(), base64.URLEncoding.EncodeToString(b[:])), true
	}
	i.ctx, i.cancel = context.WithCancelCause(ctx)
	i.stalled = time.AfterFunc(arrival.StallTime, func() {
		i.cancel(fmt.Errorf("content store takes nothing of a layer: %w", errdefs.ErrUnavailable))
	})
	defer i.stalled.Stop()
	w, err := blobs.Writer(i.ctx, content.WriterOptions{Ref: i.ref})
	if err != nil {
		err = arrival.Cause(i.ctx, err)
		i.cancel(nil)
		return nil, err
	}
	i.w = w
	if err := w.Truncate(i.ctx, 0); err != nil {
		err = arrival.Cause(i.ctx, err)
		i.close()
		return nil, err
	}
	return i, nil
}

// within runs a step that may take so long.
func (i *ingest) within(limit time.Duration, step func() error) error {
	i.stalled.Reset(limit)
	defer i.stalled.Stop()
	if err := step(); err != nil {
		return arrival.Cause(i.ctx, err)
	}
	return nil
}

// Write implements io.Writer.
func (i *ingest) Write(b []byte) (n int, err error) {
	err = i.within(arrival.StallTime, func() (err error) {
		n, err = i.w.Write(b)
		return err
	})
	return n, err
}

// commit makes the bytes a blob, with a label that says what they are
// uncompressed, if they are not. One that is there already is told so too.
func (i *ingest) commit(labels map[string]string, uncompressed digest.Digest) (content.Info, error) {
	labels = maps.Clone(labels)
	if uncompressed != "" {
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[diff.LabelUncompressed] = uncompressed.String()
	}
	d := i.w.Digest()
	err := i.within(commitTime, func() error { return i.w.Commit(i.ctx, 0, d, labels) })
	if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
		return content.Info{}, err
	}
	i.w = nil
	var info content.Info
	err = i.within(arrival.StallTime, func() (err error) {
		info, err = i.blobs.Info(i.ctx, d)
		if err != nil || uncompressed == "" || info.Labels[diff.LabelUncompressed] != "" {
			return err
		}
		info.Labels = labels
		info, err = i.blobs.Update(i.ctx, info, "labels."+diff.LabelUncompressed)
		return err
	})
	return info, err
}

// close ends an ingest. What was not committed is left to whoever chose the ref,
// and is otherwise forgotten, also if the caller has gone.
func (i *ingest) close() error {
	defer i.cancel(nil)
	if i.w == nil {
		return nil
	}
	err := i.w.Close()
	i.w = nil
	if !i.ours {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(i.ctx), abortTime)
	defer cancel()
	if e := i.blobs.Abort(ctx, i.ref); !errors.Is(e, errdefs.ErrNotFound) {
		err = errors.Join(err, e)
	}
	return err
}
