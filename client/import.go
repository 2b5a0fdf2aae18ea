package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/image"
)

// ImportOptions say what the images of an archive are called.
type ImportOptions struct {
	// Name is what to call the image, of which the archive must then have one.
	// An image that has the name already is replaced.
	Name string

	// OwnNames lets the archive name its images, if Name is empty. An image
	// that has such a name already, and is another, is
	// [errdefs.ErrAlreadyExists]: what an archive says replaces nothing.
	OwnNames bool

	// Snapshotter is where to unpack the images before they are named. With
	// an empty one, the first container of an image unpacks it.
	Snapshotter string

	// Progress, if it is not nil, is told how far it is. How much the archive
	// has is not known while it is read, which is StageSend.
	Progress func(Progress)
}

// ErrNameless says that an image is to be imported without a name. It is an
// [errdefs.ErrInvalidArgument].
var ErrNameless = invalid("the image needs a name")

// Import reads an archive of images, an OCI layout or what `docker save`
// writes, plain or compressed, and returns the images that it named.
//
// An archive that is truncated, in which a blob is not what its digest says, a
// path or a link leads out, a document is ambiguous or too large, a blob is
// missing, or nothing is for this node, is an error, mostly
// [errdefs.ErrInvalidArgument], and changes nothing: no image is named and no
// blob is added. That a layer cannot be unpacked shows only when its blob is
// there: then no image is named, and the blobs belong to nobody.
func (n *Namespace) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]image.Image, error) {
	var images []image.Image
	err := n.withLease(ctx, func(lease string) error {
		blobs := n.c.Content.In(n.scope(lease))
		a, err := readArchive(ctx, &toldReader{r: r, t: o.Progress}, blobs)
		if err == nil {
			images, err = n.importFrom(ctx, lease, a, o)
		}
		return errors.Join(err, a.abort(ctx))
	})
	return images, err
}

func (n *Namespace) importFrom(ctx context.Context, lease string, a *archive, o ImportOptions) ([]image.Image, error) {
	entries, err := a.images()
	if err != nil {
		return nil, err
	}
	named, err := o.choose(entries)
	if err != nil {
		return nil, err
	}
	// Everything is checked before anything is kept.
	var p plan
	var images []Resolved
	for _, e := range entries {
		if !slices.ContainsFunc(named, func(i image.Image) bool { return i.Target.Digest == e.target.Digest }) {
			continue
		}
		r, err := resolve(ctx, e.target, a.source)
		if err != nil {
			return nil, err
		}
		images = append(images, r)
		if err := p.add(a, e.target, indexDepthMax); err != nil {
			return nil, err
		}
	}
	store := n.c.Images.In(n.scope(lease))
	if o.Name == "" {
		if err := unused(ctx, store, named); err != nil {
			return nil, err
		}
	}
	blobs := n.c.Content.In(n.scope(lease))
	done, total := int64(0), p.size()
	for _, s := range p.steps {
		teller(o.Progress).tell(StageCommit, done, total)
		done += s.file.size
		if err := a.commit(ctx, blobs, s.file, s.labels); err != nil {
			return nil, fmt.Errorf("%s: %w", s.file.digest, err)
		}
	}
	for _, r := range images {
		if o.Snapshotter == "" || len(r.Layers) == 0 {
			continue
		}
		if err := n.unpack(ctx, lease, r, o.Snapshotter, o.Progress); err != nil {
			return nil, fmt.Errorf("unpack: %w", err)
		}
	}
	for i := range named {
		if named[i], err = name(ctx, store, named[i], o.Name != ""); err != nil {
			return nil, err
		}
	}
	return named, nil
}

// choose returns the images that are to be named.
func (o ImportOptions) choose(entries []imageEntry) ([]image.Image, error) {
	if o.Name != "" {
		if len(entries) != 1 {
			return nil, invalid("the archive has %d images%s, and one name was given", len(entries), list(entries))
		}
		if err := checkName(o.Name); err != nil {
			return nil, err
		}
		return []image.Image{{Name: o.Name, Target: entries[0].target}}, nil
	}
	if !o.OwnNames {
		return nil, fmt.Errorf("%w, and none was given", ErrNameless)
	}
	var images []image.Image
	seen := make(map[string]digest.Digest)
	for _, e := range entries {
		for _, name := range e.names {
			if err := checkName(name); err != nil {
				return nil, err
			}
			if d, ok := seen[name]; ok {
				if d != e.target.Digest {
					return nil, invalid("the archive is ambiguous: it has two images called %s", name)
				}
				continue
			}
			seen[name] = e.target.Digest
			images = append(images, image.Image{Name: name, Target: e.target})
		}
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%w, and the archive has none", ErrNameless)
	}
	return images, nil
}

// list names what an archive has, for people.
func list(entries []imageEntry) string {
	var names []string
	for _, e := range entries {
		if len(e.names) == 0 {
			names = append(names, e.target.Digest.String())
		}
		names = append(names, e.names...)
	}
	if len(names) == 0 {
		return ""
	}
	return " (" + strings.Join(names, ", ") + ")"
}

// A plan is what of an archive becomes a blob, children first.
type plan struct {
	steps []step
	seen  map[planned]bool
}

// planned is a blob in one of its roles: the same bytes may be both a layer and
// a document.
type planned struct {
	digest    digest.Digest
	mediaType string
}

type step struct {
	file   *file
	labels map[string]string
}

// size is that of the planned blobs, in bytes.
func (p *plan) size() (bytes int64) {
	for _, s := range p.steps {
		bytes += s.file.size
	}
	return bytes
}

// add plans an image: its documents and layers. Of an index it plans what the
// archive has; what it does not have is for other nodes, which resolve has
// made sure of.
func (p *plan) add(a *archive, d ocispec.Descriptor, depth int) error {
	role := planned{d.Digest, d.MediaType}
	if p.seen[role] {
		return nil
	}
	if p.seen == nil {
		p.seen = make(map[planned]bool)
	}
	p.seen[role] = true
	f, ok := a.blobs[d.Digest]
	if !ok {
		return about(d, invalid("the archive does not have it: it is truncated or not whole"))
	}
	if f.size != d.Size {
		return about(d, invalid("has %d bytes where its descriptor says %d", f.size, d.Size))
	}
	if !isIndex(d.MediaType) && !isManifest(d.MediaType) {
		p.steps = append(p.steps, step{file: f})
		return nil
	}
	if f.bytes == nil || depth < 0 {
		return about(d, invalid("is a document that is too large or too deep"))
	}
	doc, err := parseDocument(d.MediaType, f.bytes)
	if err != nil {
		return about(d, err)
	}
	for _, child := range doc.children() {
		if _, ok := a.blobs[child.Digest]; !ok && isIndex(d.MediaType) {
			continue
		}
		if err := p.add(a, child, depth-1); err != nil {
			return err
		}
	}
	p.steps = append(p.steps, step{file: f, labels: doc.references()})
	return nil
}

// unused is [errdefs.ErrAlreadyExists] if one of the names is another image's.
func unused(ctx context.Context, store image.Store, images []image.Image) error {
	for _, i := range images {
		old, err := store.Get(ctx, i.Name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if old.Target.Digest != i.Target.Digest {
			return fmt.Errorf("image %s is another one here, and an archive may not replace it; name it yourself: %w", i.Name, errdefs.ErrAlreadyExists)
		}
	}
	return nil
}

// name creates an image, or with replace gives the name another target.
func name(ctx context.Context, store image.Store, i image.Image, replace bool) (image.Image, error) {
	var created image.Image
	err := once(ctx, func(ctx context.Context) (err error) {
		created, err = store.Create(ctx, i, image.Options{})
		if replace && errdefs.IsAlreadyExists(err) {
			created, err = store.Update(ctx, i, image.Options{}, "target")
		}
		return err
	})
	if !errdefs.IsAlreadyExists(err) {
		return created, err
	}
	if err := unused(ctx, store, []image.Image{i}); err != nil {
		return image.Image{}, err
	}
	return store.Get(ctx, i.Name)
}
