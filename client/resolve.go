package client

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/content"
)

// A Resolved is an image as this node's platform has it.
type Resolved struct {
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
	Image    ocispec.Image // what Config says
}

// ChainID names the snapshot of all the layers. It is empty without layers.
func (r Resolved) ChainID() digest.Digest { return identity.ChainID(r.Image.RootFS.DiffIDs) }

// chain names the snapshots of the layers, from the lowest.
func (r Resolved) chain() []digest.Digest {
	return identity.ChainIDs(slices.Clone(r.Image.RootFS.DiffIDs)) // which writes into its argument
}

// Resolve reads an image's documents from the namespace's content. It is
// [errdefs.ErrNotFound] if one is missing or the image has nothing for this
// node, and [errdefs.ErrInvalidArgument] if one is not what it should be.
func (n *Namespace) Resolve(ctx context.Context, target ocispec.Descriptor) (Resolved, error) {
	blobs := n.c.Content.In(n.scope(""))
	return resolve(ctx, target, func(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
		return fetch(ctx, blobs, d, limit)
	})
}

// A source returns a blob of at most limit bytes.
type source func(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)

// fetch reads a whole blob and checks that it is what d says.
func fetch(ctx context.Context, blobs content.Blobs, d ocispec.Descriptor, limit int64) ([]byte, error) {
	b, err := content.ReadAll(ctx, blobs, d.Digest, limit)
	if err == nil && int64(len(b)) != d.Size {
		return nil, invalid("has %d bytes where its descriptor says %d", len(b), d.Size)
	}
	return b, err
}

// indexDepthMax is how deep indexes may be nested.
const indexDepthMax = 4

// nodePlatform is what this node runs.
func nodePlatform() platforms.MatchComparer {
	p := platforms.DefaultSpec()
	p.OS = "linux"
	return platforms.Only(p)
}

func resolve(ctx context.Context, target ocispec.Descriptor, from source) (Resolved, error) {
	return resolveAt(ctx, target, from, indexDepthMax)
}

func resolveAt(ctx context.Context, target ocispec.Descriptor, from source, depth int) (Resolved, error) {
	b, err := from(ctx, target, manifestMax)
	if err != nil {
		return Resolved{}, about(target, err)
	}
	doc, err := parseDocument(target.MediaType, b)
	if err != nil {
		return Resolved{}, about(target, err)
	}
	if isManifest(target.MediaType) {
		return resolveManifest(ctx, target, doc, from)
	}
	if depth == 0 {
		return Resolved{}, about(target, invalid("is an index too deep"))
	}
	chosen, err := choose(doc.Manifests)
	if err != nil {
		return Resolved{}, about(target, err)
	}
	return resolveAt(ctx, chosen, from, depth-1)
}

// choose returns what of an index this node runs.
func choose(manifests []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var fit []ocispec.Descriptor
	var others []string
	node := nodePlatform()
	for _, m := range manifests {
		switch {
		case !isManifest(m.MediaType) && !isIndex(m.MediaType):
		case m.Platform == nil:
			// What has no platform may be anything, such as a signature. An
			// index of one is a mere wrapper.
			if len(manifests) == 1 {
				fit = append(fit, m)
			}
		case node.Match(*m.Platform):
			fit = append(fit, m)
		default:
			others = append(others, platforms.Format(*m.Platform))
		}
	}
	if len(fit) == 0 {
		has := "names no platform"
		if len(others) > 0 {
			has = "has " + strings.Join(others, ", ")
		}
		return ocispec.Descriptor{}, fmt.Errorf("nothing for this node: the image %s: %w", has, errdefs.ErrNotFound)
	}
	return slices.MinFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case node.Less(*a.Platform, *b.Platform):
			return -1
		case node.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	}), nil
}

func resolveManifest(ctx context.Context, target ocispec.Descriptor, doc document, from source) (Resolved, error) {
	config := *doc.Config
	if !slices.Contains(configTypes, config.MediaType) {
		return Resolved{}, about(target, fmt.Errorf("config of media type %q is no image's: %w", config.MediaType, errdefs.ErrNotImplemented))
	}
	b, err := from(ctx, config, configMax)
	if err != nil {
		return Resolved{}, about(config, err)
	}
	img, err := parseConfig(b, len(doc.Layers))
	if err != nil {
		return Resolved{}, about(config, err)
	}
	if img.OS != "" && !nodePlatform().Match(img.Platform) {
		return Resolved{}, fmt.Errorf("nothing for this node: the image is for %s: %w", platforms.Format(img.Platform), errdefs.ErrNotFound)
	}
	return Resolved{Manifest: target, Config: config, Layers: doc.Layers, Image: img}, nil
}

// about says which blob an error is about.
func about(d ocispec.Descriptor, err error) error {
	return fmt.Errorf("%s: %w", d.Digest, err)
}
