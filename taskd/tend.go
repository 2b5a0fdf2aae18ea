package taskd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/task"
)

// A shim that does not answer is tried again, first after pauseMin.
const (
	pauseMin = 100 * time.Millisecond
	pauseMax = 30 * time.Second
)

// cleanMax is how many delete commands run at once.
const cleanMax = 4

// cleanTries is how often a delete command may fail.
const cleanTries = 3

// statusUnknown is the exit status of a process of which nobody knows.
const statusUnknown = 255

// deathTime is how long a process may take to end after its connection has.
const deathTime = 2 * time.Second

func pauses() iter.Seq[time.Duration] {
	return func(yield func(time.Duration) bool) {
		for p := pauseMin; yield(p); p = min(2*p, pauseMax) {
		}
	}
}

// pause waits, and reports whether there is still something to wait for.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// Recover finds out what became of the tasks that Open found, all at once, and
// returns when ctx ends. What is certainly dead is cleaned up; what does not
// answer is kept, and tried again.
func (s *Store) Recover(ctx context.Context) error {
	s.mu.Lock()
	for _, dir := range s.trash {
		s.wg.Go(func() { s.dumpFound(dir) })
	}
	s.trash = nil
	for _, l := range s.tasks {
		if l.look().phase != dead && !l.tended {
			l.tended = true
			s.wg.Go(func() { s.recoverTask(l) })
		}
	}
	s.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	return nil
}

func (s *Store) recoverTask(l *live) {
	if l.record().State == creating {
		s.abandonAtLast(l)
		return
	}
	if err := s.listen(l); err != nil {
		s.log.Warn("a shim's log cannot be read", "namespace", l.namespace, "task", l.id, "err", err)
	}
	s.tend(l, nil)
}

// tend keeps a task connected to its shim until the task is gone, its shim is
// certainly dead, or taskd closes. shim may be nil.
func (s *Store) tend(l *live, shim task.Shim) {
	for {
		if shim == nil {
			if shim = s.seekAtLast(l); shim == nil {
				return
			}
			l.reach(shim)
			s.resume(l)
		}
		select {
		case <-shim.Done():
			l.become(seeking, nil)
			shim = nil
		case <-l.ctx.Done():
			if s.ctx.Err() != nil {
				shim.Close()
			}
			return // whoever ended the task closes the connection
		}
	}
}

// resume goes on with a deletion that was begun before a restart.
func (s *Store) resume(l *live) {
	if l.record().State != deleting {
		return
	}
	s.wg.Go(func() {
		if _, err := s.joinDelete(s.ctx, l); err != nil {
			s.log.Warn("a deletion that was begun cannot be completed", "namespace", l.namespace, "task", l.id, "err", err)
		}
	})
}

// errDead is that a shim is certainly dead.
var errDead = errors.New("shim is dead")

// seekAtLast looks for a task's shim until it answers. It returns nil if there
// is no more to be found.
func (s *Store) seekAtLast(l *live) task.Shim {
	for pause := range pauses() {
		shim, err := s.seek(l)
		v := l.look()
		switch {
		case s.ctx.Err() != nil || v.phase == gone:
			if err == nil {
				shim.Close()
			}
			return nil
		case err == nil:
			if v.phase == mute {
				s.log.Info("a shim answers again", "namespace", l.namespace, "task", l.id)
			}
			return shim
		case errors.Is(err, errDead):
			s.bury(l)
			return nil
		}
		if v.phase != mute {
			s.log.Warn("a shim does not answer: its task is kept", "namespace", l.namespace, "task", l.id, "err", err)
			l.become(mute, nil)
		}
		if !s.pause(pause) {
			return nil
		}
	}
	return nil
}

// seek connects to a task's shim and hears it answer. The error is errDead only
// on proof: nobody listens, and the process that did has ended.
func (s *Store) seek(l *live) (task.Shim, error) {
	ctx, cancel := context.WithTimeout(s.ctx, seekTime)
	defer cancel()
	a, err := l.address()
	if err != nil {
		return nil, s.proveDead(ctx, l, err)
	}
	shim, err := s.run.connect(ctx, l.namespace, a)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, s.proveDead(ctx, l, err)
	}
	if err != nil {
		return nil, err
	}
	// A shim that says it has no such task is alive, and what is left of the
	// task is to be deleted: the deletion had come that far.
	_, err = shim.Get(ctx, l.id, "")
	if errors.Is(err, errdefs.ErrNotFound) {
		rec := l.record()
		rec.State = deleting
		err = l.save(s.disk, rec)
		l.setRecord(rec)
	}
	if err != nil {
		shim.Close()
		return nil, err
	}
	return shim, nil
}

// proveDead returns errDead if the shim's process has ended, or else why.
func (s *Store) proveDead(ctx context.Context, l *live, why error) error {
	p := l.record().Shim
	if p == (process{}) {
		return fmt.Errorf("%w: %w", errDead, why) // nothing but its socket was ever known of it
	}
	ended, err := s.run.watch(p)
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && within(ctx, ended, deathTime) {
		return fmt.Errorf("%w: %w", errDead, why)
	}
	return errors.Join(fmt.Errorf("process %d lives, but: %w", p.Pid, why), err)
}

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
	s.tellFirst(l)
	kept := false
	for pause := range pauses() {
		if kept, err = s.recordDeath(l, rec, exit); err == nil {
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

// tellFirst tells what a dead shim has left to tell before its end is told, if
// the bus is there. If it is not, nobody waits for it.
func (s *Store) tellFirst(l *live) {
	ctx, cancel := context.WithTimeout(s.ctx, lastTime)
	defer cancel()
	if err := s.tellLeft(ctx, l.namespace, l.dir); err != nil {
		s.log.Warn("events that a shim left are told later", "namespace", l.namespace, "task", l.id, "err", err)
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

// lineMax is how much of a line of a shim's log is logged.
const lineMax = 4096

// listen logs what a task's shim writes to its log, until the task is gone. The
// FIFO is opened for both ends, so that neither waits for the other.
func (s *Store) listen(l *live) error {
	f, err := os.OpenFile(l.file(logFile), os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		defer f.Close()
		defer context.AfterFunc(l.ctx, func() { f.Close() })()
		s.logLines(l, f)
	})
	return nil
}

func (s *Store) logLines(l *live, f *os.File) {
	r := bufio.NewReaderSize(f, lineMax)
	for cut := false; ; {
		line, more, err := r.ReadLine()
		if err != nil {
			return
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && !cut {
			s.log.Info("a shim says", "namespace", l.namespace, "task", l.id, "line", string(line))
		}
		cut = more
	}
}
