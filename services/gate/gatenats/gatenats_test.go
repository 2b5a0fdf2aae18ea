package gatenats_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatenats"
	"github.com/gantryd/gantry/services/gate/gatetest"
)

func newServer(t *testing.T) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s
}

func connect(t *testing.T, s *server.Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// serve returns when the gate can be asked.
func serve(t *testing.T, s *server.Server, nc *nats.Conn, name string, g gate.Gate) (stop func()) {
	t.Helper()
	before := s.NumSubscriptions()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- gatenats.Serve(ctx, nc, name, g) }()
	for over := time.Now().Add(20 * time.Second); s.NumSubscriptions() == before; {
		if time.Now().After(over) {
			t.Fatal("the gate does not subscribe")
		}
		<-time.After(time.Millisecond)
	}
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestAsker(t *testing.T) {
	gatetest.Run(t, func(t *testing.T) gatetest.Wall {
		s := newServer(t)
		plugin := connect(t, s)
		return gatetest.Wall{
			Asker: gatenats.NewAsker(connect(t, s)),
			Serve: func(t *testing.T, name string, g gate.Gate) func() { return serve(t, s, plugin, name, g) },
		}
	})
}

var request = gate.Request{Namespace: "one", Container: "c1", Pid: 7}

func TestHostileAnswers(t *testing.T) {
	s := newServer(t)
	nc := connect(t, s)
	var answer atomic.Value
	if _, err := nc.Subscribe(gatenats.Subject("network"), func(m *nats.Msg) { _ = m.Respond(answer.Load().([]byte)) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	a := gatenats.NewAsker(connect(t, s))
	for _, said := range []string{
		"", "yes", "null", "true", "{}", "[]", `{"pass":null}`, `{"pass":"true"}`, `{"pass":1}`, `{"reason":"x"}`,
		`{"pass":true`, `{"pass":true}{"pass":false}`, "\x00\xff\n", `{"pass":true,"reason":7}`, strings.Repeat("[", 60<<10),
		`{"pass":true,"reason":"` + strings.Repeat("x", 900<<10) + `"}`,
	} {
		answer.Store([]byte(said))
		err := a.Ask(t.Context(), "network", request)
		if !errors.Is(err, errdefs.ErrInternal) || strings.ContainsAny(err.Error(), "\n\x00") || len(err.Error()) > 512 {
			t.Errorf("it answers %.40q, and the error is %.600v", said, err)
		}
	}
	answer.Store([]byte(`{"pass":false,"reason":"a\nb\u0000\u202e` + strings.Repeat("é", 20<<10) + `","more":{}}`))
	err := a.Ask(t.Context(), "network", request)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "a b é") || len(err.Error()) > 1024 {
		t.Errorf("the error is %v", err)
	}
	answer.Store([]byte(`{"pass":true,"more":[1]}`))
	if err := a.Ask(t.Context(), "network", request); err != nil {
		t.Errorf("an answer of a later version: %v", err)
	}
}

func TestTheFirstOfSeveralAnswersCounts(t *testing.T) {
	s := newServer(t)
	nc := connect(t, s)
	_, err := nc.Subscribe(gatenats.Subject("network"), func(m *nats.Msg) {
		_ = m.Respond([]byte(`{"pass":false,"reason":"first"}`))
		_ = m.Respond([]byte(`{"pass":true}`))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := gatenats.NewAsker(nc).Ask(t.Context(), "network", request); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Fatalf("Ask: %v", err)
		}
	}
}

func TestARequestThatIsTooLarge(t *testing.T) {
	s := newServer(t)
	nc := connect(t, s)
	r := request
	r.Labels = map[string]string{"large": strings.Repeat("x", 2<<20)}
	if err := gatenats.NewAsker(nc).Ask(t.Context(), "network", r); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Ask: %v", err)
	}
}

func TestWithoutABusThereIsNoWayToAsk(t *testing.T) {
	s := newServer(t)
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s.Shutdown()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for err == nil || errors.Is(err, errdefs.ErrNotFound) { // it has not noticed yet
		short, cancel := context.WithTimeout(ctx, time.Second)
		err = gatenats.NewAsker(nc).Ask(short, "network", request)
		cancel()
	}
	if !errors.Is(err, errdefs.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ask: %v", err)
	}
}

// A question that is put again while it is worked on is worked on once, and
// both are answered.
func TestTheSameQuestionIsWorkedOnOnce(t *testing.T) {
	s := newServer(t)
	plugin, nc := connect(t, s), connect(t, s)
	var passes atomic.Int32
	last, leave := make(chan struct{}), make(chan struct{})
	defer serve(t, s, plugin, "network", gate.Func(func(_ context.Context, r gate.Request) error {
		if r.Pid != request.Pid {
			close(last)
			return nil
		}
		passes.Add(1)
		<-leave
		return errors.New("no")
	}))()
	a := gatenats.NewAsker(nc)
	answers := make(chan error, 3)
	for range 3 {
		go func() { answers <- a.Ask(t.Context(), "network", request) }()
	}
	for nc.Stats().OutMsgs < 3 {
		<-time.After(time.Millisecond)
	}
	other := request
	other.Pid++
	if err := a.Ask(t.Context(), "network", other); err != nil {
		t.Errorf("Ask: %v", err)
	}
	<-last // it came behind them
	close(leave)
	for range 3 {
		if err := <-answers; !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("Ask: %v", err)
		}
	}
	if n := passes.Load(); n != 1 {
		t.Errorf("it was worked on %d times", n)
	}
}

func TestAQuestionThatIsNotOneIsNotPutToTheGate(t *testing.T) {
	s := newServer(t)
	nc := connect(t, s)
	defer serve(t, s, nc, "network", gate.Func(func(_ context.Context, r gate.Request) error {
		t.Errorf("the gate was asked %v", r)
		return nil
	}))()
	for _, body := range []string{"", "null", "{}", "x", `{"namespace":"../x","container":"c","pid":1}`, `{"namespace":"a","container":"c","pid":0}`, `{"namespace":"a","container":"c","pid":1e99}`} {
		m, err := nc.Request(gatenats.Subject("network"), []byte(body), 20*time.Second)
		if err != nil || !strings.Contains(string(m.Data), `"pass":false`) {
			t.Errorf("asked %q it says %v, %v", body, m, err)
		}
	}
}

func TestServeEndsWithItsConnection(t *testing.T) {
	s := newServer(t)
	nc := connect(t, s)
	ended := make(chan error, 1)
	go func() {
		ended <- gatenats.Serve(t.Context(), nc, "network", gate.Func(func(context.Context, gate.Request) error { return nil }))
	}()
	for nc.NumSubscriptions() == 0 {
		<-time.After(time.Millisecond)
	}
	nc.Close()
	if err := <-ended; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Serve: %v", err)
	}
	if err := gatenats.Serve(t.Context(), nc, "a.*", nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Serve of a bad name: %v", err)
	}
}
