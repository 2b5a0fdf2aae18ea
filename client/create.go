package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
)

// RuntimeDefault is used where neither the caller nor the namespace names
// another.
const RuntimeDefault = "io.containerd.runc.v2"

// labelStopSignal is the signal that an image wants to be stopped with, as
// containerd's clients keep it.
const labelStopSignal = "io.containerd.image.config.stop-signal"

// CreateOptions say what Create makes.
type CreateOptions struct {
	ID          string // empty makes one up, from the image's name
	Image       string // the name of one that the namespace has; ":latest" may be left out
	Program     Program
	Labels      map[string]string
	Mounts      []specs.Mount
	ReadOnly    bool
	HostNet     bool
	Net         Net
	Snapshotter string // empty is the namespace's, or SnapshotterDefault
	Runtime     string // empty is the namespace's, or RuntimeDefault
}

// Create makes a container of an image, which it unpacks if nobody has yet. A
// name that is taken is [errdefs.ErrAlreadyExists].
//
// Of the image's labels the container gets those that mean nothing to the suite
// or to its clients.
func (n *Namespace) Create(ctx context.Context, o CreateOptions) (*Container, error) {
	img, err := n.defaults(ctx, &o)
	if err != nil {
		return nil, err
	}
	var r Resolved
	err = once(ctx, func(ctx context.Context) (err error) {
		r, err = n.Resolve(ctx, img.Target)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.Name, err)
	}
	record, err := n.record(o, img, r)
	if err != nil {
		return nil, err
	}
	// The record comes first: from then on the snapshot is the container's,
	// whatever becomes of this client.
	k := &Container{n: n}
	if k.Container, err = n.createRecord(ctx, record); err != nil {
		return nil, err
	}
	if k.mounts, err = n.prepare(ctx, k.Container, r); err != nil {
		ctx, cancel := clean(ctx)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("snapshot of %s: %w", img.Name, err), k.Remove(ctx))
	}
	return k, nil
}

// defaults fills in what o leaves open and returns the image.
func (n *Namespace) defaults(ctx context.Context, o *CreateOptions) (img image.Image, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		img, err = n.image(ctx, o.Image)
		return err
	})
	if o.Snapshotter == "" || o.Runtime == "" {
		g.Go(func() error {
			return once(ctx, func(ctx context.Context) error {
				info, err := n.c.Namespaces.Get(ctx, n.name)
				o.Snapshotter = first(o.Snapshotter, info.Labels[namespace.LabelSnapshotter], SnapshotterDefault)
				o.Runtime = first(o.Runtime, info.Labels[namespace.LabelRuntime], RuntimeDefault)
				return err
			})
		})
	}
	err = g.Wait()
	if o.ID == "" {
		o.ID = newID(o.Image)
	}
	return img, err
}

// image returns the image of that name, or of that name with the tag that
// clients leave out. Names are opaque to the suite: only a person's abbreviation
// is completed here.
func (n *Namespace) image(ctx context.Context, name string) (image.Image, error) {
	store := n.c.Images.In(n.scope(""))
	get := func(name string) (img image.Image, err error) {
		err = once(ctx, func(ctx context.Context) error {
			img, err = store.Get(ctx, name)
			return err
		})
		return img, err
	}
	img, err := get(name)
	if errdefs.IsNotFound(err) && !strings.ContainsAny(name[strings.LastIndexByte(name, '/')+1:], ":@") {
		if tagged, e := get(name + ":latest"); e == nil {
			return tagged, nil
		}
	}
	return img, err
}

// first returns the first that is not empty.
func first(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// newID makes an identifier that tells people which image it is.
func newID(image string) string {
	name := image[strings.LastIndexByte(image, '/')+1:]
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(name, ":")
	name = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return -1
	}, name)
	random := strings.ToLower(rand.Text()[:8])
	if name == "" {
		return random
	}
	return name[:min(len(name), 32)] + "-" + random
}

// record makes a container's record.
func (n *Namespace) record(o CreateOptions, img image.Image, r Resolved) (container.Container, error) {
	if err := o.connect(); err != nil {
		return container.Container{}, err
	}
	o.Program = o.Program.Over(r.Image.Config)
	spec, err := NewSpec(SpecOptions{
		Namespace: n.name,
		ID:        o.ID,
		Program:   o.Program,
		Mounts:    o.Mounts,
		ReadOnly:  o.ReadOnly,
		HostNet:   o.HostNet,
		OnNetwork: o.Net.Name != "",
	})
	if err != nil {
		return container.Container{}, err
	}
	value, err := specValue(spec)
	if err != nil {
		return container.Container{}, err
	}
	labels := imageLabels(r.Image.Config.Labels)
	if s := r.Image.Config.StopSignal; s != "" {
		if _, err := ParseSignal(s); err == nil {
			labels[labelStopSignal] = s
		}
	}
	maps.Copy(labels, o.Labels)
	return container.Container{
		ID:          o.ID,
		Labels:      labels,
		Image:       img.Name,
		Runtime:     container.Runtime{Name: o.Runtime},
		Spec:        value,
		Snapshotter: o.Snapshotter,
		SnapshotKey: o.ID + "-" + rand.Text()[:12], // what an earlier one of this name left does not matter
	}, nil
}

// reserved begins the labels that mean something to the suite, to containerd,
// or to a client of them: with such a label an image would choose what is done
// on the node.
var reserved = []string{"containerd.io/", "io.containerd.", "io.cri-containerd", "gantry.dev/", "nerdctl/", "io.kubernetes."}

// imageLabels are those of an image's labels that a container may have.
func imageLabels(labels map[string]string) map[string]string {
	kept := make(map[string]string, len(labels))
next:
	for k, v := range labels {
		for _, prefix := range reserved {
			if strings.HasPrefix(strings.ToLower(k), prefix) {
				continue next
			}
		}
		if label.Check(map[string]string{k: v}) == nil {
			kept[k] = v
		}
	}
	return kept
}

// createRecord creates a record once, however often it has to be tried.
func (n *Namespace) createRecord(ctx context.Context, c container.Container) (created container.Container, err error) {
	store := n.c.Containers.In(n.scope(""))
	err = again(ctx, callTime, func(ctx context.Context, repeated bool) error {
		created, err = store.Create(ctx, c)
		if repeated && errdefs.IsAlreadyExists(err) {
			// The snapshot's key is in no other record.
			old, getErr := store.Get(ctx, c.ID)
			if getErr == nil && old.SnapshotKey == c.SnapshotKey {
				created, err = old, nil
			}
		}
		return err
	})
	return created, err
}

// prepare makes a container's snapshot.
func (n *Namespace) prepare(ctx context.Context, c container.Container, r Resolved) (mounts []mount.Mount, err error) {
	store, err := n.c.Snapshots.In(n.scope(""), c.Snapshotter)
	if err != nil {
		return nil, err
	}
	prepare := func(ctx context.Context) error {
		mounts, err = store.Prepare(ctx, c.SnapshotKey, r.ChainID().String(), snapshot.Options{})
		if errdefs.IsAlreadyExists(err) {
			mounts, err = store.Mounts(ctx, c.SnapshotKey)
		}
		return err
	}
	// It says itself if the image is not unpacked: no call only to ask.
	if err := once(ctx, prepare); !errdefs.IsNotFound(err) {
		return mounts, err
	}
	if _, err := n.Unpack(ctx, r, c.Snapshotter); err != nil {
		return nil, err
	}
	return mounts, once(ctx, prepare)
}
