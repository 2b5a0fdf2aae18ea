package mounter

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
)

// A state is how far an activation is.
type state string

const (
	making state = "making" // not to be seen yet
	active state = "active"
)

// A record is what is kept of an activation; its key is its name.
type record struct {
	place
	State   state               `json:"state"`
	Active  []activation.Active `json:"active,omitempty"`
	System  []mount.Mount       `json:"system,omitempty"`
	Labels  map[string]string   `json:"labels,omitempty"`
	Created time.Time           `json:"created"`
}

// A place is where an activation's mounts are; its row under "unmount" says that
// nobody has them any more.
type place struct {
	ID    uint64 `json:"id"`
	Boot  string `json:"boot"`
	Dir   string `json:"dir"`
	Count int    `json:"count"` // there are so many mounts at most
}

func (r record) info(name string) activation.Info {
	return activation.Info{Name: name, Active: r.Active, System: r.System, Labels: r.Labels}
}

// Rows is the first part of the key of an activation; its namespace and its name
// follow.
const Rows = "activation"

// Key is the key of an activation.
func Key(ns, name string) []byte { return recordKey(ns, name) }

func recordKey(ns, name string) []byte { return kv.Key(Rows, ns, name) }
func endingKey(ns, name string) []byte { return kv.Key("activation.ending", ns, name) }
func unmountKey(id uint64) []byte      { return kv.Key("unmount", fmt.Sprintf("%016x", id)) }

var lastKey = kv.Key("activation.last")

// Resource is an activation as the resource of a lease, and as a node of the
// collector's graph.
func Resource(name string) lease.Resource { return lease.Resource{Type: gc.TypeMounts, ID: name} }

// Object reads a row as the collector sees it: without its leases. One that is
// being made keeps itself.
func Object(key, value []byte) (gc.Object, error) {
	parts := kv.Parts(key)
	o := gc.Object{Node: gc.Node{Namespace: parts[1], Resource: Resource(parts[2])}}
	r, err := readRecord(key, value)
	if err != nil {
		return o, err
	}
	o.Read(r.Labels)
	o.Root = o.Root || r.State == making
	return o, nil
}

// readRecord is [errdefs.ErrDataLoss] for a record that is damaged.
func readRecord(key, value []byte) (record, error) {
	var r record
	err := json.Unmarshal(value, &r)
	if err == nil && (r.ID == 0 || r.Dir == "" || r.Count > math.MaxUint16) {
		err = errors.New("it has no place")
	}
	if err != nil {
		return r, fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
	}
	return r, nil
}

func get(tx *kv.Tx, ns, name string) (record, error) {
	var r record
	err := tx.GetJSON(recordKey(ns, name), &r)
	if errors.Is(err, errdefs.ErrNotFound) {
		return r, fmt.Errorf("activation %s: %w", name, errdefs.ErrNotFound)
	}
	return r, err
}

// drop deletes the rows of an activation.
func drop(tx *kv.Tx, ns, name string) error {
	return errors.Join(tx.Delete(recordKey(ns, name)), tx.Delete(endingKey(ns, name)))
}

// abandon drops an activation and leaves its mounts to Collect.
func (s *Store) abandon(tx *kv.Tx, ns, name string, p place) error {
	tx.After(s.ring)
	return errors.Join(drop(tx, ns, name), tx.PutJSON(unmountKey(p.ID), p))
}

// Drop removes an activation in a transaction of the caller's; its mounts go
// later. One that is not there, or is being made, is left alone.
func (s *Store) Drop(tx *kv.Tx, ns, name string) error {
	r, err := get(tx, ns, name)
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && r.State == making {
		return nil
	}
	if err != nil {
		return err
	}
	return s.abandon(tx, ns, name, r.place)
}

// scanUnmounts returns what nobody has any more.
func scanUnmounts(tx *kv.Tx) (all []place, err error) {
	for key, value := range tx.Scan(kv.Key("unmount", ""), nil) {
		var p place
		if err := json.Unmarshal(value, &p); err != nil {
			return nil, fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
		}
		all = append(all, p)
	}
	return all, nil
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// parseID reads the name of a directory of mounts.
func parseID(name string) (uint64, bool) {
	id, err := strconv.ParseUint(name, 10, 64)
	return id, err == nil && strconv.FormatUint(id, 10) == name
}
