package snapshotrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
)

var tenant = namespace.Scope{Name: "one"}

// raw is what containerd's clients speak, in front of snapshots in memory.
func raw(t *testing.T) (api.SnapshotsClient, snapshot.Store) {
	m := snapshottest.NewMemory(nil)
	conn := rpctest.Pipe(t, func(r grpc.ServiceRegistrar) { snapshotrpc.Register(r, m) })
	s, err := m.In(tenant, snapshottest.Snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	return api.NewSnapshotsClient(conn), s
}

// batches are how many snapshots are in each message of a list.
func batches(t *testing.T, c api.SnapshotsClient) (sizes []int) {
	t.Helper()
	stream, err := c.List(rpc.WithScope(t.Context(), tenant), &api.ListSnapshotsRequest{Snapshotter: snapshottest.Snapshotter})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return sizes
		}
		if err != nil {
			t.Fatalf("List after %v: %v", sizes, err)
		}
		sizes = append(sizes, len(resp.GetInfo()))
	}
}

func TestAListHasAHundredInAMessage(t *testing.T) {
	c, s := raw(t)
	if got := batches(t, c); len(got) > 0 {
		t.Errorf("a list of none has messages of %v", got)
	}
	for i := range 200 {
		if _, err := s.Prepare(t.Context(), fmt.Sprint(i), "", snapshot.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := batches(t, c); !slices.Equal(got, []int{100, 100}) {
		t.Errorf("200 snapshots are in messages of %v", got)
	}
}

// TestAListOfLongLabelsCanBeSent: with as many labels as one may have, a hundred
// snapshots are more than a message takes.
func TestAListOfLongLabelsCanBeSent(t *testing.T) {
	c, s := raw(t)
	labels := map[string]string{}
	for i := range 500 {
		labels[fmt.Sprintf("%04d", i)] = strings.Repeat("x", 4000)
	}
	for i := range 12 {
		if _, err := s.Prepare(t.Context(), fmt.Sprint(i), "", snapshot.Options{Labels: labels}); err != nil {
			t.Fatal(err)
		}
	}
	if got := batches(t, c); len(got) < 4 {
		t.Errorf("24 MB of labels are in messages of %v", got)
	}
}

// TestWhatIsMissingFirst: containerd says the same of calls without headers.
func TestWhatIsMissingFirst(t *testing.T) {
	c, _ := raw(t)
	for what, call := range map[string]struct {
		ctx  context.Context
		name string
		kind error
	}{
		"neither":        {t.Context(), "", errdefs.ErrInvalidArgument},
		"no snapshotter": {rpc.WithScope(t.Context(), tenant), "", errdefs.ErrInvalidArgument},
		"another":        {rpc.WithScope(t.Context(), tenant), "another", errdefs.ErrInvalidArgument},
		"no namespace":   {t.Context(), snapshottest.Snapshotter, errdefs.ErrFailedPrecondition},
	} {
		if _, err := c.Stat(call.ctx, &api.StatSnapshotRequest{Snapshotter: call.name, Key: "x"}); !errors.Is(err, call.kind) {
			t.Errorf("%s: %v, want %v", what, err, call.kind)
		}
	}
}
