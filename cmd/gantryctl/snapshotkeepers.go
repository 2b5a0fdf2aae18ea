package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/snapshot"
)

// The labels by which things keep snapshots, and blobs each other.
const (
	labelRoot        = "containerd.io/gc.root"
	labelRefSnapshot = "containerd.io/gc.ref.snapshot."
	labelRefContent  = "containerd.io/gc.ref.content"
	labelBack        = "containerd.io/gc.bref."
)

// keepers are who keeps the snapshots of a snapshotter, besides snapshots.
type keepers struct {
	leases map[string]bool     // those that there are
	names  map[string][]string // by the key of the snapshot
}

// of returns who keeps a snapshot.
func (k keepers) of(m snapshot.Measured) []string {
	kept := []string{}
	switch m.Children {
	case 0:
	case 1:
		kept = append(kept, "1 snapshot")
	default:
		kept = append(kept, fmt.Sprintf("%d snapshots", m.Children))
	}
	kept = append(kept, k.names[m.Name]...)
	for _, id := range m.Leases {
		if k.leases[id] {
			kept = append(kept, "lease "+id)
		}
	}
	for _, key := range sortedKeys(m.Labels) {
		switch what, back := strings.CutPrefix(key, labelBack); {
		case key == labelRoot:
			kept = append(kept, "label "+labelRoot)
		case back:
			what, _, _ = strings.Cut(what, ".")
			kept = append(kept, what+" "+m.Labels[key])
		}
	}
	return kept
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// keepers asks who refers to what.
func (s *shelf) keepers(ctx context.Context) (keepers, error) {
	k := keepers{leases: make(map[string]bool), names: make(map[string][]string)}
	containers, err := s.client.Containers.In(s.scope()).List(ctx)
	if err != nil {
		return k, err
	}
	for _, c := range containers {
		if c.Snapshotter == s.snapshotter && c.SnapshotKey != "" {
			k.add(c.SnapshotKey, "container "+c.ID)
		}
		k.labels(s.snapshotter, c.Labels, "container "+c.ID)
	}
	leases, err := s.client.Leases.In(s.scope()).List(ctx)
	if err != nil {
		return k, err
	}
	for _, l := range leases {
		k.leases[l.ID] = true
		k.labels(s.snapshotter, l.Labels, "lease "+l.ID)
	}
	return k, s.images(ctx, k)
}

// images adds who keeps snapshots by labels of blobs: the images that have them,
// or the blob where no image does.
func (s *shelf) images(ctx context.Context, k keepers) error {
	refs := make(map[digest.Digest][]digest.Digest) // of blobs to blobs
	keeping := make(map[digest.Digest]map[string]string)
	for i, err := range s.blobs().List(ctx) {
		if err != nil {
			return err
		}
		for key, value := range i.Labels {
			switch {
			case strings.HasPrefix(key, labelRefContent):
				refs[i.Digest] = append(refs[i.Digest], digest.Digest(value))
			case strings.HasPrefix(key, labelRefSnapshot):
				keeping[i.Digest] = i.Labels
			}
		}
	}
	images, err := s.client.Images.In(s.scope()).List(ctx)
	if err != nil {
		return err
	}
	named := make(map[digest.Digest]bool)
	for _, i := range images {
		k.labels(s.snapshotter, i.Labels, "image "+i.Name)
		seen := map[digest.Digest]bool{i.Target.Digest: true}
		for queue := []digest.Digest{i.Target.Digest}; len(queue) > 0; queue = queue[1:] {
			if labels := keeping[queue[0]]; labels != nil {
				named[queue[0]] = true
				k.labels(s.snapshotter, labels, "image "+i.Name)
			}
			for _, d := range refs[queue[0]] {
				if !seen[d] {
					seen[d] = true
					queue = append(queue, d)
				}
			}
		}
	}
	for d, labels := range keeping {
		if !named[d] {
			k.labels(s.snapshotter, labels, "blob "+brief(d))
		}
	}
	for key := range k.names {
		slices.Sort(k.names[key])
	}
	return nil
}

// labels adds what labels of a thing keep.
func (k keepers) labels(snapshotter string, labels map[string]string, who string) {
	for key, value := range labels {
		if rest, ok := strings.CutPrefix(key, labelRefSnapshot); ok {
			if of, _, _ := strings.Cut(rest, "/"); of == snapshotter {
				k.add(value, who)
			}
		}
	}
}

func (k keepers) add(key, who string) {
	if !slices.Contains(k.names[key], who) {
		k.names[key] = append(k.names[key], who)
	}
}
