package imaged

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/label"
	"github.com/gantryd/gantry/services/namespace"
)

const (
	// listTime is how long a List waits for who holds something.
	listTime = time.Second

	// leaseBatch is how many leases of a namespace end in one transaction.
	leaseBatch = 256
)

// namespaces are the namespaces of the node.
type namespaces struct{ *Store }

// A namespaceRecord is a namespace on disk; its name is in the key.
type namespaceRecord struct {
	Labels map[string]string `json:"labels,omitempty"`
}

func namespaceKey(name string) []byte { return kv.Key("namespace", name) }

// get returns what was created, or a record without labels.
func (s namespaces) get(tx *kv.Tx, name string) (r namespaceRecord, created bool, err error) {
	err = tx.GetJSON(namespaceKey(name), &r)
	if errdefs.IsNotFound(err) {
		return namespaceRecord{}, false, nil
	}
	return r, err == nil, err
}

// Get implements namespace.Store.
func (s namespaces) Get(_ context.Context, name string) (namespace.Info, error) {
	info := namespace.Info{Name: name}
	err := s.db.View(func(tx *kv.Tx) error {
		r, _, err := s.get(tx, name)
		info.Labels = r.Labels
		return err
	})
	return info, err
}

// List implements namespace.Store.
func (s namespaces) List(ctx context.Context) ([]namespace.Info, error) {
	labels := map[string]map[string]string{}
	held, err := s.holdings(ctx, listTime)
	if err != nil {
		s.log.Warn("namespaces in use may be missing from a list", "err", err)
	}
	for _, h := range held {
		labels[h.Namespace] = nil
	}
	err = s.db.View(func(tx *kv.Tx) error {
		if err := s.inUse(tx, labels); err != nil {
			return err
		}
		for key, value := range tx.Scan(namespaceKey(""), nil) {
			name := kv.Parts(key)[1]
			var r namespaceRecord
			if err := json.Unmarshal(value, &r); err != nil {
				return fmt.Errorf("namespace %q: %v: %w", name, err, errdefs.ErrDataLoss)
			}
			labels[name] = r.Labels
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var infos []namespace.Info
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		infos = append(infos, namespace.Info{Name: name, Labels: labels[name]})
	}
	return infos, nil
}

// inUse adds the namespaces that have an image or a lease here.
func (s namespaces) inUse(tx *kv.Tx, found map[string]map[string]string) error {
	var from []byte
	for {
		ns, ok := "", false
		for key := range tx.Scan(kv.Key("image", ""), from) {
			ns, ok = kv.Parts(key)[1], true
			break
		}
		if !ok {
			break
		}
		found[ns] = nil
		// What is past every image of this namespace: the separator is 0.
		from = append(kv.Key("image", ns), 1)
	}
	for key, value := range tx.Scan(kv.Key("lease", ""), nil) {
		ns := kv.Parts(key)[1]
		if _, known := found[ns]; known {
			continue
		}
		var r leaseRecord
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
		}
		if !r.expired(s.now()) {
			found[ns] = nil
		}
	}
	return nil
}

// holdings asks every holder, all at once, and returns what those have that
// answered in time. The error is the others', which is [errdefs.ErrUnavailable].
func (s namespaces) holdings(ctx context.Context, within time.Duration) ([]namespace.Holding, error) {
	daemons := slices.Sorted(maps.Keys(s.holders))
	found, errs := make([][]namespace.Holding, len(daemons)), make([]error, len(daemons))
	var all sync.WaitGroup
	for i, daemon := range daemons {
		all.Go(func() {
			errs[i] = ask(ctx, daemon, within, func(ctx context.Context) (err error) {
				found[i], err = s.holders[daemon].Holdings(ctx)
				return err
			})
		})
	}
	all.Wait()
	var held []namespace.Holding
	var silent []string
	for i := range daemons {
		if errs[i] != nil {
			silent = append(silent, errs[i].Error())
		} else {
			held = append(held, found[i]...)
		}
	}
	if len(silent) > 0 {
		return held, fmt.Errorf("what is in it is not known: %s: %w", strings.Join(silent, "; "), errdefs.ErrUnavailable)
	}
	return held, nil
}

// Create implements namespace.Store.
func (s namespaces) Create(ctx context.Context, info namespace.Info) (namespace.Info, error) {
	if err := ident.Check(info.Name); err != nil {
		return namespace.Info{}, err
	}
	if err := label.Check(info.Labels); err != nil {
		return namespace.Info{}, err
	}
	info.Labels = label.Clean(info.Labels)
	err := s.db.Update(ctx, func(tx *kv.Tx) error {
		if _, created, err := s.get(tx, info.Name); err != nil {
			return err
		} else if created {
			return fmt.Errorf("namespace %q: %w", info.Name, errdefs.ErrAlreadyExists)
		}
		return s.put(ctx, tx, info, event.NamespaceCreate{Name: info.Name, Labels: info.Labels})
	})
	if err != nil {
		return namespace.Info{}, err
	}
	return info, nil
}

// Update implements namespace.Store.
func (s namespaces) Update(ctx context.Context, info namespace.Info, fields ...string) (namespace.Info, error) {
	if err := ident.Check(info.Name); err != nil {
		return namespace.Info{}, err
	}
	updated := namespace.Info{Name: info.Name}
	err := s.db.Update(ctx, func(tx *kv.Tx) error {
		old, _, err := s.get(tx, info.Name)
		if err != nil {
			return err
		}
		if updated.Labels, err = namespace.UpdateLabels(old.Labels, info.Labels, fields); err != nil {
			return fmt.Errorf("namespace %q: %w", info.Name, err)
		}
		return s.put(ctx, tx, updated, event.NamespaceUpdate{Name: info.Name, Labels: updated.Labels})
	})
	if err != nil {
		return namespace.Info{}, err
	}
	return updated, nil
}

func (s namespaces) put(ctx context.Context, tx *kv.Tx, info namespace.Info, told event.Payload) error {
	if err := checkText(info.Name, info.Labels); err != nil {
		return fmt.Errorf("namespace %q: %w", info.Name, err)
	}
	if err := put(tx, namespaceKey(info.Name), namespaceRecord{Labels: info.Labels}); err != nil {
		return fmt.Errorf("namespace %q: %w", info.Name, err)
	}
	return s.box.Add(ctx, tx, event.New(info.Name, s.now(), told))
}

// Delete implements namespace.Store.
func (s namespaces) Delete(ctx context.Context, name string) error {
	held, err := s.holdings(ctx, callTime)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("namespace %q: %w", name, err)
	}
	held = slices.DeleteFunc(held, func(h namespace.Holding) bool { return h.Namespace != name })
	for first := true; ; first = false {
		done := false
		err := s.db.Release(ctx, func(tx *kv.Tx) (err error) {
			done, err = s.remove(ctx, tx, name, held, first)
			return err
		})
		if err != nil || done {
			return err
		}
	}
}

// remove removes a namespace that is empty, or, if it has too many leases for
// one transaction, some of those. The first call of a Delete says whether there
// is such a namespace.
func (s namespaces) remove(ctx context.Context, tx *kv.Tx, name string, held []namespace.Holding, first bool) (done bool, err error) {
	for range tx.Scan(kv.Key("image", name, ""), nil) {
		held = append(slices.Clone(held), namespace.Holding{Namespace: name, Kind: namespace.KindImages})
		break
	}
	if len(held) > 0 {
		return false, namespace.NotEmpty(name, held)
	}
	_, exists, err := s.get(tx, name)
	if err != nil {
		return false, err
	}
	n := 0
	for key := range tx.Scan(leaseKey(name, ""), nil) {
		if n == leaseBatch {
			return false, nil
		}
		n++
		id := kv.Parts(key)[2]
		r, err := getLease(tx, name, id)
		if err != nil {
			return false, err
		}
		exists = exists || !r.expired(s.now())
		if err := s.end(tx, name, id, r); err != nil {
			return false, err
		}
	}
	if first && !exists {
		return false, fmt.Errorf("namespace %q: %w", name, errdefs.ErrNotFound)
	}
	if err := tx.Delete(namespaceKey(name)); err != nil {
		return false, err
	}
	return true, s.box.Add(ctx, tx, event.New(name, s.now(), event.NamespaceDelete{Name: name}))
}
