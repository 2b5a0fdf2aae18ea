// Package clienttest is a node in memory and images for it: what tests of
// whoever uses package client need instead of a suite.
package clienttest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/container/containertest"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/diff"
	"github.com/gantryd/gantry/services/event/eventtest"
	"github.com/gantryd/gantry/services/image/imagetest"
	"github.com/gantryd/gantry/services/lease/leasetest"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/namespace/namespacetest"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
	"github.com/gantryd/gantry/services/task/tasktest"
	"github.com/gantryd/gantry/services/unpack/unpacktest"
)

// New returns a node whose stores are in memory and whose processes are
// functions: [tasktest.DefaultPrograms] unless programs says otherwise.
func New(t testing.TB, programs tasktest.Programs) *client.Client {
	t.Helper()
	if programs == nil {
		programs = tasktest.DefaultPrograms()
	}
	leases := &leasetest.Memory{}
	blobs := contenttest.NewMemory(leases)
	snapshots := snapshottest.NewMemory(leases)
	containers := containertest.NewMemory()
	return &client.Client{
		Content:    blobs,
		Snapshots:  snapshots,
		Diffs:      layers{blobs},
		Unpacking:  unpacktest.In(blobs, snapshots),
		Images:     imagetest.NewMemory(leases),
		Leases:     leases,
		Namespaces: namespacetest.NewMemory(blobs, snapshots, containers),
		Containers: containers,
		Tasks:      tasktest.NewMemory(containers, programs),
		Events:     eventtest.NewMemory(),
		IODir:      t.TempDir(),
	}
}

// layers reads layers and puts them nowhere: the snapshots in memory have no
// files.
type layers struct{ blobs content.Stores }

func (l layers) In(scope namespace.Scope) diff.Service { return layersIn{l.blobs.In(scope)} }

type layersIn struct{ blobs content.Store }

func (l layersIn) Apply(ctx context.Context, layer ocispec.Descriptor, _ []mount.Mount, _ diff.ApplyOptions) (ocispec.Descriptor, error) {
	b, err := content.ReadAll(ctx, l.blobs, layer.Digest, 64<<20)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if layer.MediaType == ocispec.MediaTypeImageLayerGzip {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err == nil {
			b, err = io.ReadAll(z)
		}
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}, nil
}

func (l layersIn) Diff(context.Context, []mount.Mount, []mount.Mount, diff.DiffOptions) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, fmt.Errorf("make a layer: %w", errdefs.ErrNotImplemented)
}
