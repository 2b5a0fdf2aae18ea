package imaged

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/namespace"
)

// images are the images of every scope.
type images struct{ *Store }

// In implements image.Stores.
func (s images) In(scope namespace.Scope) image.Store { return imageStore{s.Store, scope} }

// An imageStore is the images of one scope.
type imageStore struct {
	*Store
	scope namespace.Scope
}

// An imageRecord is an image on disk; its name is in the key.
type imageRecord struct {
	Labels      map[string]string `json:"labels,omitempty"`
	MediaType   string            `json:"media_type"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	CreatedAt   time.Time         `json:"created_at"`
	UpdatedAt   time.Time         `json:"updated_at"`
}

func toImageRecord(i image.Image) imageRecord {
	return imageRecord{
		Labels:      i.Labels,
		MediaType:   i.Target.MediaType,
		Digest:      i.Target.Digest,
		Size:        i.Target.Size,
		Annotations: i.Target.Annotations,
		CreatedAt:   i.CreatedAt,
		UpdatedAt:   i.UpdatedAt,
	}
}

func (r imageRecord) image(name string) image.Image {
	return image.Image{
		Name:   name,
		Labels: r.Labels,
		Target: ocispec.Descriptor{
			MediaType:   r.MediaType,
			Digest:      r.Digest,
			Size:        r.Size,
			Annotations: r.Annotations,
		},
		CreatedAt: r.CreatedAt,
		UpdatedAt: r.UpdatedAt,
	}
}

func (s imageStore) key(name string) []byte { return kv.Key("image", s.scope.Name, name) }

func (s imageStore) get(tx *kv.Tx, name string) (image.Image, error) {
	var r imageRecord
	if err := tx.GetJSON(s.key(name), &r); err != nil {
		return image.Image{}, fmt.Errorf("image %q: %w", name, err)
	}
	return r.image(name), nil
}

// Get implements image.Store.
func (s imageStore) Get(_ context.Context, name string) (i image.Image, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		i, err = s.get(tx, name)
		return err
	})
	return i, err
}

// List implements image.Store.
func (s imageStore) List(_ context.Context, filters ...string) ([]image.Image, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	var found []image.Image
	err = s.db.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(s.key(""), nil) {
			name := kv.Parts(key)[2]
			var r imageRecord
			if err := json.Unmarshal(value, &r); err != nil {
				return fmt.Errorf("image %q: %v: %w", name, err, errdefs.ErrDataLoss)
			}
			if i := r.image(name); f.Match(i.Field) {
				found = append(found, i)
			}
		}
		return nil
	})
	return found, err
}

// Create implements image.Store.
func (s imageStore) Create(ctx context.Context, i image.Image, o image.Options) (image.Image, error) {
	at, err := o.Now(s.now())
	if err != nil {
		return image.Image{}, err
	}
	if err := i.Check(); err != nil {
		return image.Image{}, err
	}
	i = i.Clean()
	i.CreatedAt, i.UpdatedAt = at, at
	return i, s.db.Update(ctx, func(tx *kv.Tx) error {
		if _, err := tx.Get(s.key(i.Name)); err == nil {
			return fmt.Errorf("image %q: %w", i.Name, errdefs.ErrAlreadyExists)
		} else if !errdefs.IsNotFound(err) {
			return err
		}
		return s.put(ctx, tx, i, event.ImageCreate{Name: i.Name, Labels: i.Labels})
	})
}

// Update implements image.Store.
func (s imageStore) Update(ctx context.Context, i image.Image, o image.Options, fields ...string) (updated image.Image, err error) {
	at, err := o.Now(s.now())
	if err != nil {
		return image.Image{}, err
	}
	err = s.db.Update(ctx, func(tx *kv.Tx) error {
		old, err := s.get(tx, i.Name)
		if err != nil {
			return err
		}
		if updated, err = image.Updated(old, i, fields); err != nil {
			return err
		}
		updated.UpdatedAt = at
		return s.put(ctx, tx, updated, event.ImageUpdate{Name: updated.Name, Labels: updated.Labels})
	})
	if err != nil {
		return image.Image{}, err
	}
	return updated, nil
}

// put writes an image, puts it under the scope's lease if it expires, and tells
// of it.
func (s imageStore) put(ctx context.Context, tx *kv.Tx, i image.Image, told event.Payload) error {
	if err := checkText(i.Name+i.Target.MediaType, i.Labels, i.Target.Annotations); err != nil {
		return fmt.Errorf("image %q: %w", i.Name, err)
	}
	if s.scope.Lease != "" && i.Expires() {
		l, err := s.lookup(tx, s.scope)
		if err != nil {
			return err
		}
		if err := tx.Put(memberKey(s.scope.Name, l, i.Name), nil); err != nil {
			return err
		}
	}
	if err := put(tx, s.key(i.Name), toImageRecord(i)); err != nil {
		return fmt.Errorf("image %q: %w", i.Name, err)
	}
	return s.box.Add(ctx, tx, event.New(s.scope.Name, s.now(), told))
}

// Delete implements image.Store.
func (s imageStore) Delete(ctx context.Context, name string, o image.DeleteOptions) error {
	return s.db.Release(ctx, func(tx *kv.Tx) error {
		i, err := s.get(tx, name)
		if err != nil {
			return err
		}
		if o.Target != "" && o.Target != i.Target.Digest {
			return fmt.Errorf("image %q with target %s: %w", name, o.Target, errdefs.ErrNotFound)
		}
		if s.scope.Lease != "" {
			l, err := s.lookup(tx, s.scope)
			if err == nil {
				err = tx.Delete(memberKey(s.scope.Name, l, name))
			}
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		if err := tx.Delete(s.key(name)); err != nil {
			return err
		}
		return s.box.Add(ctx, tx, event.New(s.scope.Name, s.now(), event.ImageDelete{Name: name}))
	})
}
