package gatenats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/ident"
)

const (
	passMax  = 16              // questions that a gate works on at once
	waitMax  = 1024            // questions that wait; who asked asks again
	waitSize = 64 << 20        // bytes of them
	passTime = 2 * time.Minute // for one question
	tellMax  = 16              // times that the same question is answered

	// queue has a question go to one of several processes that answer by the
	// same name, as while a plugin is replaced by its next version.
	queue = "gate"
)

// Serve has g answer by a name until ctx ends, over a connection that it leaves
// open. The end of the connection is [errdefs.ErrUnavailable]. Questions under
// way when ctx ends are not answered: who asked asks the next who answers.
func Serve(ctx context.Context, nc *nats.Conn, name string, g gate.Gate) error {
	if err := ident.Check(name); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	sub, err := nc.QueueSubscribeSync(Subject(name), queue)
	if err == nil {
		err = sub.SetPendingLimits(waitMax, waitSize)
	}
	if err != nil {
		return fmt.Errorf("gate %s: %v: %w", name, err, errdefs.ErrUnavailable)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &server{ctx: ctx, name: name, gate: g, places: make(chan struct{}, passMax), asked: make(map[question][]*nats.Msg)}
	defer s.passes.Wait()
	defer cancel()
	// What is not answered is not to wait for us.
	defer func() { _ = sub.Unsubscribe(); _ = nc.Flush() }()
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, nats.ErrSlowConsumer):
			continue // some are lost, and asked again
		case err != nil:
			return fmt.Errorf("gate %s: %v: %w", name, err, errdefs.ErrUnavailable)
		}
		s.take(m)
	}
}

// A question is what makes two requests the same.
type question struct {
	namespace, container string
	pid                  int
}

// A server answers by one name.
type server struct {
	ctx    context.Context
	name   string
	gate   gate.Gate
	places chan struct{} // one for each question that is worked on
	passes sync.WaitGroup

	// mu guards asked, whom to tell the answers under way.
	mu    sync.Mutex
	asked map[question][]*nats.Msg
}

// take begins with a question, or joins it to one that is the same.
func (s *server) take(m *nats.Msg) {
	var r gate.Request
	err := json.Unmarshal(m.Data, &r)
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		respond(m, fmt.Errorf("the question is not understood: %w", err))
		return
	}
	q := question{r.Namespace, r.Container, r.Pid}
	s.mu.Lock()
	tell, known := s.asked[q]
	if len(tell) < tellMax {
		s.asked[q] = append(tell, m)
	}
	s.mu.Unlock()
	if known {
		return
	}
	select {
	case s.places <- struct{}{}:
	case <-s.ctx.Done():
		return
	}
	s.passes.Go(func() {
		defer func() { <-s.places }()
		s.pass(q, r)
	})
}

// pass asks the gate and tells everybody who has asked the same.
func (s *server) pass(q question, r gate.Request) {
	ctx, cancel := context.WithTimeout(s.ctx, passTime)
	defer cancel()
	err := s.gate.Pass(ctx, r)
	s.mu.Lock()
	tell := s.asked[q]
	delete(s.asked, q)
	s.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	for _, m := range tell {
		respond(m, err)
	}
}

// respond answers a question. An answer that is lost is asked for again.
func respond(m *nats.Msg, err error) {
	pass := err == nil
	a := answer{Pass: &pass}
	if err != nil {
		a.Reason = gate.Reason(err.Error())
	}
	body, err := json.Marshal(a)
	if err == nil {
		_ = m.Respond(body)
	}
}
