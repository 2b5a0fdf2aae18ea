package netd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/network"
	"github.com/gantryd/gantry/services/task"
)

// Limits of what others take.
const (
	pluginTime = 20 * time.Second // the plugins of a network, together
	askTime    = 5 * time.Second  // a call to taskd
)

// Pass implements [gate.Gate]: it connects a container as its labels ask. It
// returns nil when the container may start: it is connected, and its addresses are in a label, or it
// asks for no network. Asked again for the same task, it does nothing twice.
//
// Labels that do not parse are [errdefs.ErrInvalidArgument], a network that
// there is not is [errdefs.ErrNotFound], a port that another container has is
// [errdefs.ErrAlreadyExists], and a container that cannot be connected is
// [errdefs.ErrFailedPrecondition]. Plugins that fail and daemons that are away
// are what they are, and nothing of the attempt stays, or it is undone later.
func (s *Store) Pass(ctx context.Context, q gate.Request) error {
	if err := q.Check(); err != nil {
		return err
	}
	pid := uint32(q.Pid)
	want, err := network.Wanted(q.Labels)
	if err != nil || want.Network == "" {
		return err
	}
	k := key{q.Namespace, q.Container}
	release, err := s.turns.take(ctx, k)
	if err != nil {
		return err
	}
	defer release()
	ns, err := s.namespaceOf(ctx, k, pid)
	if err != nil {
		return err
	}
	defer ns.close()
	if old := s.get(k); old != nil {
		if s.serves(old, ns, want) {
			return s.tell(ctx, old)
		}
		// Of another task, or half of one.
		if err := s.detach(ctx, old); err != nil {
			return fmt.Errorf("what is left of an earlier attachment: %w", err)
		}
	}
	n, err := s.network(want.Network)
	if err != nil {
		return err
	}
	r := &record{
		ID: s.newID(), Namespace: q.Namespace, Container: q.Container, Pid: pid, Netns: ns.id, Boot: s.boot,
		Network: n.name, List: n.list, Ports: want.Ports, State: attaching,
	}
	// Once begun, it goes on to its end: who asked may have left.
	return s.attach(context.WithoutCancel(ctx), r, ns, n.ipam != nil)
}

// namespaceOf opens the network namespace of a task.
func (s *Store) namespaceOf(ctx context.Context, k key, pid uint32) (*netns, error) {
	ns, err := s.kernel.Open(pid)
	if err != nil {
		return nil, err
	}
	// Now that it is open: if the task still has this process, it had it when
	// it was opened, and it was not somebody else's.
	p, err := s.taskOf(ctx, k)
	switch {
	case err != nil:
	case p.Pid != pid || p.Status == task.Stopped || p.Status == task.Unknown:
		err = fmt.Errorf("process %d is not that of container %s (which is %s, process %d): %w", pid, k, p.Status, p.Pid, errdefs.ErrFailedPrecondition)
	case ns.node:
		err = fmt.Errorf("container %s has the network of the node, which is not connected to another: %w", k, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}

func (s *Store) taskOf(ctx context.Context, k key) (task.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return s.needs.Tasks.In(namespace.Scope{Name: k.namespace}).Get(ctx, k.container, "")
}

// serves says whether an attachment is whole and what is wanted.
func (s *Store) serves(r *record, ns *netns, want network.Want) bool {
	id, pinned, err := s.kernel.Pinned(s.pin(r.ID))
	return err == nil && pinned && id == ns.id && r.Netns == ns.id &&
		r.State == attached && r.Network == want.Network && slices.Equal(r.Ports, want.Ports)
}

// attach makes an attachment, or nothing. A container whose addresses are given
// by the node, static ones, takes none from others.
func (s *Store) attach(ctx context.Context, r *record, ns *netns, static bool) error {
	for _, p := range r.Ports {
		if err := s.kernel.Taken(p); err != nil {
			return err
		}
	}
	if static {
		if err := s.kernel.RefuseRouters(ns); err != nil {
			return err
		}
	}
	if err := s.claimFrom(ctx, r); err != nil {
		return err
	}
	done, err := s.connect(ctx, r, ns)
	if err != nil {
		if undo := s.detach(ctx, r); undo != nil {
			s.log.Warn("an attachment that failed is not undone yet", "namespace", r.Namespace, "container", r.Container, "err", undo)
			s.later(r.key())
		}
		return fmt.Errorf("network %s: %w", r.Network, err)
	}
	s.log.Info("connected", "namespace", r.Namespace, "container", r.Container, "network", r.Network, "addresses", done.Addresses, "ports", network.FormatPorts(r.Ports))
	return s.tell(ctx, done)
}

// claimFrom is claim that does not count what is only left of a container: who
// removes one and starts another is not to wait for the event. Nobody waits for
// us meanwhile: we have no record.
func (s *Store) claimFrom(ctx context.Context, r *record) error {
	for {
		holder, err := s.claim(r)
		if err == nil {
			return nil
		}
		was := s.get(holder)
		ctx, cancel := context.WithTimeout(ctx, pluginTime)
		looked := s.look(ctx, holder)
		cancel()
		if now := s.get(holder); looked != nil || now != nil && now == was {
			return err
		}
	}
}

// connect does it step by step. What is intended is on record before anything
// is done.
func (s *Store) connect(ctx context.Context, r *record, ns *netns) (*record, error) {
	if err := s.save(r); err != nil {
		return nil, err
	}
	if err := s.kernel.Pin(ns, s.pin(r.ID)); err != nil {
		return nil, err
	}
	done := *r
	err := s.inSlot(ctx, func(ctx context.Context) (err error) {
		done.Addresses, err = s.plugins.Add(ctx, s.call(r, s.pin(r.ID)))
		return err
	})
	if err != nil {
		return nil, err
	}
	done.State = attached
	if err := s.save(&done); err != nil {
		return nil, err
	}
	s.keep(&done)
	return &done, nil
}

func (s *Store) call(r *record, netns string) call {
	return call{id: r.ID, netns: netns, list: r.List, ports: r.Ports, dir: s.dir(r.ID)}
}

// inSlot calls f, with a deadline, when fewer than pluginsMax others run.
func (s *Store) inSlot(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, pluginTime)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%d other containers are being connected: %v: %w", pluginsMax, ctx.Err(), errdefs.ErrUnavailable)
	}
	defer func() { <-s.slots }()
	return f(ctx)
}

// tell writes an attachment's addresses into a label of its container. An
// attachment whose container is gone goes.
func (s *Store) tell(ctx context.Context, r *record) error {
	err := s.label(ctx, r, strings.Join(r.Addresses, ","))
	if errors.Is(err, errdefs.ErrNotFound) {
		s.later(r.key())
	}
	if err != nil {
		return fmt.Errorf("label %s: %w", network.LabelAddresses, err)
	}
	return nil
}

func (s *Store) label(ctx context.Context, r *record, value string) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	store := s.needs.Containers.In(namespace.Scope{Name: r.Namespace})
	// One label by its name, so that nobody else's is touched.
	_, err := store.Update(ctx, container.Container{ID: r.Container, Labels: map[string]string{network.LabelAddresses: value}}, "labels."+network.LabelAddresses)
	return err
}

// detach undoes an attachment, however far it came, and forgets it. What fails
// can be tried again.
func (s *Store) detach(ctx context.Context, r *record) error {
	// From here on it is no connection, also to who asks after a crash.
	going := *r
	going.State, going.Addresses = detaching, nil
	if r.State != detaching {
		if err := s.save(&going); err != nil {
			return err
		}
		s.keep(&going)
	}
	path := s.pin(r.ID)
	_, pinned, err := s.kernel.Pinned(path)
	if err != nil {
		return err
	}
	if !pinned {
		path = "" // it ended with a boot, or was never pinned
	}
	err = s.inSlot(ctx, func(ctx context.Context) error { return s.plugins.Del(ctx, s.call(r, path)) })
	if err != nil {
		return fmt.Errorf("network %s: %w", r.Network, err)
	}
	if err := s.kernel.Unpin(s.pin(r.ID)); err != nil {
		return err
	}
	if err := s.label(ctx, r, ""); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("label %s: %w", network.LabelAddresses, err)
	}
	if err := s.forget(r); err != nil {
		return err
	}
	s.drop(r)
	s.log.Info("disconnected", "namespace", r.Namespace, "container", r.Container, "network", r.Network)
	return nil
}
