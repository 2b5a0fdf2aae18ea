package taskd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace"
)

// containersKey is the first part of a container's key.
const containersKey = "container"

func containerKey(ns, id string) []byte { return kv.Key(containersKey, ns, id) }

type containers struct{ s *Store }

var _ container.Stores = containers{}

// In implements container.Stores.
func (c containers) In(scope namespace.Scope) container.Store {
	return containerStore{c.s, scope.Name}
}

type containerStore struct {
	*Store
	namespace string
}

var _ container.Store = containerStore{}

// Get implements container.Store.
func (s containerStore) Get(_ context.Context, id string) (c container.Container, err error) {
	err = s.db.View(func(tx *kv.Tx) error {
		c, err = s.get(tx, id)
		return err
	})
	return c, err
}

func (s containerStore) get(tx *kv.Tx, id string) (container.Container, error) {
	var c container.Container
	err := tx.GetJSON(containerKey(s.namespace, id), &c)
	if errors.Is(err, errdefs.ErrNotFound) {
		err = fmt.Errorf("container %q in namespace %q: %w", id, s.namespace, errdefs.ErrNotFound)
	}
	return c, err
}

// List implements container.Store.
func (s containerStore) List(_ context.Context, filters ...string) ([]container.Container, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	var all []container.Container
	err = s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(containerKey(s.namespace, ""), nil) {
			var c container.Container
			if err := tx.GetJSON(key, &c); err != nil {
				return err
			}
			if f.Match(c.Field) {
				all = append(all, c)
			}
		}
		return nil
	})
	return all, err
}

// Create implements container.Store.
func (s containerStore) Create(ctx context.Context, c container.Container) (container.Container, error) {
	if err := (namespace.Scope{Name: s.namespace}).Check(); err != nil {
		return container.Container{}, err
	}
	if err := container.Check(c); err != nil {
		return container.Container{}, err
	}
	c.Labels = label.Clean(c.Labels)
	c.CreatedAt = time.Now().UTC()
	c.UpdatedAt = c.CreatedAt
	key := containerKey(s.namespace, c.ID)
	err := s.db.Update(ctx, func(tx *kv.Tx) error {
		if _, err := tx.Get(key); err == nil {
			return fmt.Errorf("container %q: %w", c.ID, errdefs.ErrAlreadyExists)
		} else if !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		if err := tx.PutJSON(key, c); err != nil {
			return err
		}
		return s.outbox.Add(ctx, tx, event.New(s.namespace, c.CreatedAt, event.ContainerCreate{
			ID:      c.ID,
			Image:   c.Image,
			Runtime: event.ContainerRuntime{Name: c.Runtime.Name},
		}))
	})
	return c, err
}

// Update implements container.Store.
func (s containerStore) Update(ctx context.Context, c container.Container, fields ...string) (updated container.Container, err error) {
	err = s.db.Update(ctx, func(tx *kv.Tx) error {
		old, err := s.get(tx, c.ID)
		if err != nil {
			return err
		}
		if updated, err = container.Update(old, c, fields); err != nil {
			return err
		}
		updated.UpdatedAt = time.Now().UTC()
		if err := tx.PutJSON(containerKey(s.namespace, c.ID), updated); err != nil {
			return err
		}
		return s.outbox.Add(ctx, tx, event.New(s.namespace, updated.UpdatedAt, event.ContainerUpdate{
			ID:          updated.ID,
			Image:       updated.Image,
			Labels:      updated.Labels,
			SnapshotKey: updated.SnapshotKey,
		}))
	})
	if err != nil {
		return container.Container{}, err
	}
	return updated, nil
}

// Delete implements container.Store. What is known of a task whose shim died
// goes with the container.
func (s containerStore) Delete(ctx context.Context, id string) error {
	s.tellBefore(ctx, key{s.namespace, id})
	err := s.db.Release(ctx, func(tx *kv.Tx) error {
		if _, err := s.get(tx, id); err != nil {
			return err
		}
		if err := errors.Join(tx.Delete(containerKey(s.namespace, id)), tx.Delete(deadKey(s.namespace, id))); err != nil {
			return err
		}
		return s.outbox.Add(ctx, tx, event.New(s.namespace, time.Now(), event.ContainerDelete{ID: id}))
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	l := s.tasks[key{s.namespace, id}]
	delete(s.kept, key{s.namespace, id})
	s.mu.Unlock()
	if l != nil && l.look().phase == dead {
		s.forget(l)
	}
	return nil
}

// Holdings implements [namespace.Holder].
func (s *Store) Holdings(context.Context) ([]namespace.Holding, error) {
	var all []namespace.Holding
	err := s.db.View(func(tx *kv.Tx) error {
		prefix := kv.Key(containersKey, "")
		var from []byte
		for {
			ns, ok := firstNamespace(tx, prefix, from)
			if !ok {
				return nil
			}
			all = append(all, namespace.Holding{Namespace: ns, Kind: "containers"})
			// Past every key of it: the next byte after the separator.
			from = append(kv.Key(containersKey, ns), 1)
		}
	})
	return all, err
}

func firstNamespace(tx *kv.Tx, prefix, from []byte) (string, bool) {
	for key := range tx.Scan(prefix, from) {
		return kv.Parts(key)[1], true
	}
	return "", false
}
