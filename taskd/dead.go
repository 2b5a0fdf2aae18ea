package taskd

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/task"
)

// cleanMax is how many delete commands run at once.
const cleanMax = 4

// cleanTries is how often a delete command may fail.
const cleanTries = 3

// statusUnknown is the exit status of a process of which nobody knows.
const statusUnknown = 255

// bury cleans up after a dead shim and tells how its task ended.
func (s *Store) bury(l *live) {
	rec := l.record()
	s.log.Warn("a shim has died: cleaning up", "namespace", l.namespace, "task", l.id, "pid", rec.Shim.Pid)
	exit, err := s.lastWill(l, rec)
	if l.ctx.Err() != nil {
		return // it is deleted, or the next start does it again
	}
	if err != nil {
		s.log.Error("how a task ended is not known", "namespace", l.namespace, "task", l.id, "err", err)
		exit = task.Exit{Status: statusUnknown}
	}
	if exit.At.IsZero() {
		exit.At = time.Now().UTC()
	}
	if exit.Pid == 0 {
		exit.Pid = rec.Pid
	}
	kept := false
	for pause := range pauses() {
		// What it had to tell came before its end.
		if err = s.tellRest(s.ctx, l.namespace, l.dir); err == nil {
			kept, err = s.recordDeath(l, rec, exit)
		}
		if err == nil {
			break
		}
		s.log.Error("a task's end cannot be recorded: trying again", "namespace", l.namespace, "task", l.id, "err", err)
		if !s.pause(pause) {
			return
		}
	}
	// Waiters first: they have waited long enough.
	l.die(exit)
	if !kept {
		s.keep(l.key(), exit)
		s.forget(l)
	}
	if err := s.discard(l.bundle, rec.Instance); err != nil {
		s.log.Warn("a bundle cannot be removed", "dir", l.dir, "err", err)
	}
}

// lastWill runs the delete command until it succeeds or has failed too often.
func (s *Store) lastWill(l *live, rec record) (exit task.Exit, err error) {
	tries := 0
	for pause := range pauses() {
		exit, err = s.clean(s.ctx, launch{bundle: l.bundle, binary: rec.Binary})
		if tries++; err == nil || tries == cleanTries || !s.pause(pause) {
			break
		}
	}
	return exit, err
}

// clean runs a shim's delete command, not too many at once.
func (s *Store) clean(ctx context.Context, l launch) (task.Exit, error) {
	select {
	case s.cleaning <- struct{}{}:
		defer func() { <-s.cleaning }()
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	return s.run.clean(ctx, l)
}

// A death is the record of a task whose shim died, until its owner deletes it.
type death struct {
	Instance string    `json:"instance"`
	Boot     string    `json:"boot"`
	IO       task.IO   `json:"io"`
	Exit     task.Exit `json:"exit"`
}

const deadName = "dead"

func deadKey(ns, id string) []byte { return kv.Key(deadName, ns, id) }

// recordDeath writes down a death and tells of it, once: in one transaction. A
// death that nobody can ask for any more is told only.
func (s *Store) recordDeath(l *live, rec record, exit task.Exit) (kept bool, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return false, err
	}
	err = s.db.Update(s.ctx, func(tx *kv.Tx) error {
		_, err := tx.Get(containerKey(l.namespace, l.id))
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		kept = err == nil && rec.State != deleting
		if kept {
			d := death{Instance: rec.Instance, Boot: string(boot), IO: rec.IO, Exit: exit}
			if err := tx.PutJSON(deadKey(l.namespace, l.id), d); err != nil {
				return err
			}
		}
		return errors.Join(
			s.outbox.Add(s.ctx, tx, event.New(l.namespace, exit.At, event.TaskExit{
				ContainerID: l.id, ID: l.id, Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: exit.At,
			})),
			s.outbox.Add(s.ctx, tx, event.New(l.namespace, time.Now(), event.TaskDelete{
				ContainerID: l.id, Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: exit.At,
			})),
		)
	})
	return kept, err
}

// loadDead takes in the deaths of this boot, and forgets the others as their
// tasks' neighbours are.
func (s *Store) loadDead(boot string) error {
	var old [][]byte
	err := s.db.View(func(tx *kv.Tx) error {
		for k := range tx.Scan(kv.Key(deadName, ""), nil) {
			var d death
			if err := tx.GetJSON(k, &d); err != nil {
				return err
			}
			if d.Boot != boot {
				old = append(old, k)
				continue
			}
			parts := kv.Parts(k)
			b, err := s.bundle(parts[1], parts[2])
			if err != nil {
				return err
			}
			l := s.newLive(b, record{Instance: d.Instance, State: created, IO: d.IO, Pid: d.Exit.Pid})
			l.die(d.Exit)
			s.tasks[l.key()] = l
		}
		return nil
	})
	if err != nil || len(old) == 0 {
		return err
	}
	return s.db.Release(s.ctx, func(tx *kv.Tx) error {
		for _, k := range old {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}
