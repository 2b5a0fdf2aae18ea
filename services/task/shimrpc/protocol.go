package shimrpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	api "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/services/task"
)

// versionMax is the newest task API that is spoken here.
const versionMax = 3

// Protocol is the [task.ShimProtocol] of containerd's shims.
type Protocol struct{}

var _ task.ShimProtocol = Protocol{}

// Params implements [task.ShimProtocol].
func (Protocol) Params(s task.ShimStart, legacy bool) ([]byte, error) {
	if legacy {
		if s.Options == nil {
			return nil, nil
		}
		return proto.Marshal(toAny(s.Options))
	}
	p := &bootstrap.BootstrapParams{
		InstanceID:             s.ID,
		Namespace:              s.Namespace,
		ContainerdTtrpcAddress: s.Events,
		ContainerdGrpcAddress:  s.Address,
		ContainerdBinary:       s.Publisher,
	}
	if s.Sockets != "" {
		p.SocketDir = &s.Sockets
	}
	if s.Options != nil {
		p.Extensions = []*bootstrap.Extension{{Value: toAny(s.Options)}}
	}
	return proto.Marshal(p)
}

// Started implements [task.ShimProtocol]. A shim answers as protobuf, as JSON
// or with nothing but its address. JSON is tried first: no protobuf of an
// answer begins with a brace, while the bytes of an address can pass for one.
func (Protocol) Started(output []byte) (task.ShimAddress, error) {
	a, err := parseStarted(output)
	if err != nil {
		return task.ShimAddress{}, err
	}
	if a.Version > versionMax {
		return task.ShimAddress{}, fmt.Errorf("unsupported shim version (%d): %w", a.Version, errdefs.ErrNotImplemented)
	}
	return a, checkAddress(a)
}

func parseStarted(output []byte) (task.ShimAddress, error) {
	trimmed := bytes.TrimSpace(output)
	if bytes.HasPrefix(trimmed, []byte("{")) {
		var a task.ShimAddress
		if err := json.Unmarshal(trimmed, &a); err != nil {
			return a, fmt.Errorf("answer of the shim: %v: %w", err, errdefs.ErrInvalidArgument)
		}
		if a.Version < 2 {
			return a, fmt.Errorf("unsupported shim version (%d): %w", a.Version, errdefs.ErrNotImplemented)
		}
		return a, nil
	}
	if bytes.HasPrefix(trimmed, []byte("unix://")) && !bytes.ContainsAny(trimmed, "\x00\n ") {
		return task.ShimAddress{Version: 2, Address: string(trimmed), Protocol: "ttrpc"}, nil
	}
	var r bootstrap.BootstrapResult
	if err := proto.Unmarshal(output, &r); err != nil || r.Address == "" {
		return task.ShimAddress{}, fmt.Errorf("shim did not say where it listens, but %q: %w", clip(trimmed), errdefs.ErrInvalidArgument)
	}
	return task.ShimAddress{Version: int(r.Version), Address: r.Address, Protocol: r.Protocol}, nil
}

func checkAddress(a task.ShimAddress) error {
	path, ok := strings.CutPrefix(a.Address, "unix://")
	switch {
	case a.Protocol != "ttrpc":
		return fmt.Errorf("shim protocol %q: %w", clip([]byte(a.Protocol)), errdefs.ErrNotImplemented)
	case !ok:
		return fmt.Errorf("shim address %q: %w", clip([]byte(a.Address)), errdefs.ErrNotImplemented)
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		// Abstract sockets can be reached from every network namespace.
		return fmt.Errorf("shim address %q is not a path: %w", clip([]byte(a.Address)), errdefs.ErrInvalidArgument)
	}
	return nil
}

// clip shortens what an unknown program printed.
func clip(b []byte) []byte {
	const most = 512
	if len(b) > most {
		return append(b[:most:most], "…"...)
	}
	return b
}

// Deleted implements [task.ShimProtocol].
func (Protocol) Deleted(output []byte) (task.Exit, error) {
	var r api.DeleteResponse
	if len(output) == 0 {
		return task.Exit{}, fmt.Errorf("shim's delete said nothing: %w", errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(output, &r); err != nil {
		return task.Exit{}, fmt.Errorf("shim's delete said %q: %w", clip(output), errdefs.ErrInvalidArgument)
	}
	return task.Exit{Pid: r.Pid, Status: r.ExitStatus, At: fromTime(r.ExitedAt)}, nil
}

// Connect implements [task.ShimProtocol].
func (Protocol) Connect(ctx context.Context, namespace string, a task.ShimAddress) (task.Shim, error) {
	if err := checkAddress(a); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(a.Address, "unix://"))
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("shim at %s: %v: %w", a.Address, err, errdefs.ErrNotFound)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("shim at %s: %w", a.Address, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("shim at %s: %v: %w", a.Address, err, errdefs.ErrUnavailable)
	}
	return newClient(conn, namespace, a.Version), nil
}
