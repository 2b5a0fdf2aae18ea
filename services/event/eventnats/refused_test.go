package eventnats

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
)

// TestARefusedAnswerEndsNoCall has the server say no to an answer and then to
// something else: calls under way end because of the second alone.
func TestARefusedAnswerEndsNoCall(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		DontListen: true, NoSigs: true, NoLog: true,
		Users: []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"allowed"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	b, err := In(s, "u", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := b.bound(t.Context())
	defer cancel()
	for _, subject := range []string{"_INBOX.of.a.question", "denied"} {
		if err := b.nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.nc.FlushTimeout(20 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("a refused call goes on")
	}
	if err := context.Cause(ctx); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), `"denied"`) {
		t.Errorf("it ends with %v", err)
	}
}
