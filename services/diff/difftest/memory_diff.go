package difftest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/mount"
)

// Diff implements [diff.Service].
func (s memoryService) Diff(ctx context.Context, lower, upper []mount.Mount, o diff.DiffOptions) (ocispec.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, err
	}
	mediaType, pack, err := packing(o.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	archive, err := s.difference(lower, upper, o.SourceDateEpoch)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	labels := maps.Clone(o.Labels)
	if pack != nil {
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[diff.LabelUncompressed] = digest.FromBytes(archive).String()
		archive = pack(archive)
	}
	d, err := s.store(ctx, o.Ref, archive, labels)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(archive))}, err
}

func packing(mediaType string) (string, func([]byte) []byte, error) {
	switch strings.TrimPrefix(mediaType, "application/vnd.docker.image.rootfs.diff.") {
	case "", "tar.gzip", ocispec.MediaTypeImageLayerGzip:
		return ocispec.MediaTypeImageLayerGzip, Gzip, nil
	case "tar.zstd", ocispec.MediaTypeImageLayerZstd:
		return ocispec.MediaTypeImageLayerZstd, Zstd, nil
	case "tar", ocispec.MediaTypeImageLayer:
		return ocispec.MediaTypeImageLayer, nil, nil
	}
	return "", nil, fmt.Errorf("media type %q: %w", mediaType, errdefs.ErrNotImplemented)
}

// difference is the archive that turns one tree into another.
func (s memoryService) difference(lower, upper []mount.Mount, latest *time.Time) ([]byte, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	var before map[string]string
	if len(lower) > 0 {
		var err error
		if before, err = s.filesLocked(lower); err != nil {
			return nil, err
		}
	}
	after, err := s.filesLocked(upper)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, p := range slices.Sorted(maps.Keys(before)) {
		dir, base := path.Split(p)
		if _, there := after[p]; !there && (dir == "" || after[path.Clean(dir)] == "dir") {
			e := File(dir+".wh."+base, "")
			e.ModTime = time.Unix(0, 0)
			entries = append(entries, e)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(after)) {
		if before[p] != after[p] {
			e := entry(p, after[p])
			e.ModTime = Epoch
			if latest != nil && latest.Before(Epoch) {
				e.ModTime = *latest
			}
			entries = append(entries, e)
		}
	}
	return Tar(entries...), nil
}

// entry is one that [put] makes what out of.
func entry(name, what string) Entry {
	kind, value, _ := strings.Cut(what, " ")
	switch kind {
	case "dir":
		return Dir(name)
	case "link":
		return Symlink(name, value)
	}
	return File(name, value)
}

// store writes a blob, whatever the ingest has.
func (s memoryService) store(ctx context.Context, ref string, data []byte, labels map[string]string) (digest.Digest, error) {
	if ref == "" {
		ref = "made up of " + digest.FromBytes(data).String()
	}
	blobs := s.m.blobs.In(s.scope)
	w, err := blobs.Writer(ctx, content.WriterOptions{Ref: ref})
	if err != nil {
		return "", err
	}
	defer w.Close()
	if err := w.Truncate(ctx, 0); err != nil {
		return "", err
	}
	if _, err := w.Write(data); err != nil {
		return "", err
	}
	d := w.Digest()
	err = w.Commit(ctx, 0, d, labels)
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		return d, err
	}
	info, err := blobs.Info(ctx, d)
	if err != nil || labels[diff.LabelUncompressed] == "" || info.Labels[diff.LabelUncompressed] != "" {
		return d, err
	}
	_, err = blobs.Update(ctx, content.Info{Digest: d, Labels: labels}, "labels."+diff.LabelUncompressed)
	return d, err
}
