package dnsd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
)

// Subjects are those of the events that change what is answered, on the bus.
func Subjects() []string {
	return []string{
		"gantry.v1.*.tasks.start", "gantry.v1.*.tasks.exit", "gantry.v1.*.tasks.delete",
		"gantry.v1.*.containers.update", "gantry.v1.*.containers.delete",
	}
}

// said is what is read of an event's payload.
type said struct {
	Pid    uint32            `json:"pid"`
	ID     string            `json:"id"`
	Labels map[string]string `json:"labels"`
}

// Hear takes an event. What it says is taken for true at once, and taskd is
// asked soon after: an event may be told late, when more has happened.
func (s *Server) Hear(_ context.Context, e event.Event) error {
	k := key{e.Namespace, e.Subject}
	var p said
	telling := json.Unmarshal(e.JSON, &p) == nil
	s.change(func() {
		s.busAway = time.Time{}
		if telling {
			s.applyLocked(k, e.Topic, p)
		}
		s.ticks++
		s.due[k] = s.ticks
	})
	s.stir()
	return nil
}

func (s *Server) applyLocked(k key, topic string, p said) {
	r, known := s.view.records[k]
	switch topic {
	case "/tasks/start":
		if known {
			r.pid, r.alive, r.running = p.Pid, true, true
		}
	case "/tasks/exit", "/tasks/delete":
		// Of the first process. The pid is what tells a task from the one
		// before it, and from its execs.
		first := r.pid == p.Pid || r.pid == 0 && (p.ID == "" || p.ID == k.container)
		if known && first {
			r.alive, r.running = false, false
		}
	case "/containers/update":
		r.label(p.Labels)
		if !known {
			// netd writes the label before the container starts; it may ask
			// as soon as it has.
			r.alive = len(r.addresses) > 0
			known = r.alive
		}
	case "/containers/delete":
		s.view.drop(k)
		return
	}
	if known {
		s.view.put(k, r)
	}
}

// Relist makes what is known true without events. It is how a start begins, and
// how it goes on after a gap.
func (s *Server) Relist(ctx context.Context, lost *event.Gap) error {
	if lost != nil {
		s.log.InfoContext(ctx, "events were lost, and all containers are listed", "from", lost.From.String(), "to", lost.To.String())
	}
	if err := s.list(ctx); err != nil {
		return err
	}
	s.Reached(event.Cursor{})
	return nil
}

// listTime is how long a list of everything takes at most.
const listTime = time.Minute

// list asks for everything. What was heard meanwhile counts before the list.
func (s *Server) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	// Nothing is looked at meanwhile: the list would bring back what is found
	// to be gone.
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	s.mu.Lock()
	s.ticks++
	began := s.ticks
	spaces := append(s.view.namespaces(), "default")
	s.mu.Unlock()
	infos, err := s.needs.Namespaces.List(ctx)
	if err != nil {
		return s.asked(fmt.Errorf("namespaces: %w", err))
	}
	for _, i := range infos {
		spaces = append(spaces, i.Name)
	}
	slices.Sort(spaces)
	all := make(map[key]record)
	for _, ns := range slices.Compact(spaces) {
		if err := s.listIn(ctx, ns, all); err != nil {
			return s.asked(fmt.Errorf("namespace %s: %w", ns, err))
		}
	}
	s.change(func() {
		for k := range s.view.records {
			if _, ok := all[k]; !ok && s.due[k] <= began {
				s.view.drop(k)
			}
		}
		for k, r := range all {
			if s.due[k] <= began {
				s.view.put(k, r)
			}
		}
		s.known = true
	})
	return s.asked(nil)
}

func (s *Server) listIn(ctx context.Context, ns string, all map[key]record) error {
	scope := namespace.Scope{Name: ns}
	containers, err := s.needs.Containers.In(scope).List(ctx)
	if err != nil {
		return err
	}
	tasks := make(map[string]task.Process)
	list, err := s.needs.Tasks.In(scope).List(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		tasks[p.ContainerID] = p
	}
	for _, c := range containers {
		if p, ok := tasks[c.ID]; ok {
			all[key{ns, c.ID}] = toRecord(c, p)
		}
	}
	return nil
}

// toRecord is what taskd says. A shim that does not answer has a container that
// runs, for all we know.
func toRecord(c container.Container, p task.Process) record {
	r := record{pid: p.Pid}
	r.alive = p.Status != task.Stopped
	r.running = r.alive && p.Status != task.Created
	r.label(c.Labels)
	return r
}

// asked notes whether taskd answered.
func (s *Server) asked(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away(&s.taskAway, err)
	return err
}

// away keeps since when nobody answers.
func (s *Server) away(since *time.Time, err error) {
	switch {
	case err == nil:
		*since = time.Time{}
	case since.IsZero():
		*since = s.now()
	}
}

// Reached says that the bus is there. It is for [client.Subscription].
func (s *Server) Reached(event.Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away(&s.busAway, nil)
}

// Away says that the bus is not, or that it has just told of a gap.
func (s *Server) Away(err error) {
	s.mu.Lock()
	began := s.busAway.IsZero()
	s.away(&s.busAway, err)
	s.mu.Unlock()
	if began {
		s.log.Info("containers are not followed now, which is tried again", "err", err)
	}
}

// Times of what taskd is asked without a reason.
const (
	checkTime = 5 * time.Second // about one container, so that it is noticed when taskd is away
	sweepTime = 5 * time.Minute // about all of them
	askTime   = 5 * time.Second // a question about one
	pauseTime = time.Second     // after one that was not answered
)

// Look asks taskd about containers of which something was heard, until ctx
// ends.
func (s *Server) Look(ctx context.Context) error {
	check, sweep := time.NewTicker(checkTime), time.NewTicker(sweepTime)
	defer check.Stop()
	defer sweep.Stop()
	for {
		if err := s.lookAll(ctx); err != nil {
			s.pause(ctx)
			s.stir()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-check.C:
			s.checkOne()
		case <-sweep.C:
			if err := s.list(ctx); err != nil && ctx.Err() == nil {
				s.log.Info("containers are not listed now", "err", err)
			}
		}
	}
}

func (s *Server) pause(ctx context.Context) {
	timer := time.NewTimer(pauseTime)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (s *Server) stir() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// checkOne has any one container looked at.
func (s *Server) checkOne() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.view.records {
		if _, ok := s.due[k]; !ok {
			s.due[k] = 0 // what is known of it stands meanwhile
		}
		return
	}
}

// lookAll looks at what is due until nothing is, or taskd does not answer.
func (s *Server) lookAll(ctx context.Context) error {
	for {
		k, ok := s.next()
		if !ok {
			return nil
		}
		err := s.look(ctx, k)
		if errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return s.asked(err)
		}
		_ = s.asked(nil)
		if err != nil {
			s.log.Warn("a container cannot be asked about", "namespace", k.namespace, "container", k.container, "err", err)
			s.mu.Lock()
			delete(s.due, k)
			s.mu.Unlock()
		}
	}
}

func (s *Server) next() (key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.due {
		return k, true
	}
	return key{}, false
}

// look asks about one container. It stays due if more was heard of it while it
// was asked.
func (s *Server) look(ctx context.Context, k key) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	s.mu.Lock()
	s.ticks++
	began := s.ticks
	s.mu.Unlock()
	r, ok, err := s.ask(ctx, k)
	if err != nil {
		return err
	}
	s.change(func() {
		if s.due[k] > began {
			return
		}
		delete(s.due, k)
		if ok {
			s.view.put(k, r)
		} else {
			s.view.drop(k)
		}
	})
	return nil
}

func (s *Server) ask(ctx context.Context, k key) (record, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	scope := namespace.Scope{Name: k.namespace}
	c, err := s.needs.Containers.In(scope).Get(ctx, k.container)
	if err == nil {
		var p task.Process
		if p, err = s.needs.Tasks.In(scope).Get(ctx, k.container, ""); err == nil {
			return toRecord(c, p), true, nil
		}
	}
	// What cannot be a container is none.
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
		return record{}, false, nil
	}
	return record{}, false, err
}
