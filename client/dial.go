package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/container/containerrpc"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/diff/diffrpc"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/image/imagerpc"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/suite/noderpc"
	"github.com/gantryd/gantry/services/task/taskrpc"
	"github.com/gantryd/gantry/services/unpack/unpackrpc"
)

// Dial returns a client of the suite whose public door is the socket at
// address. It does not wait for it: a call does, for a short while.
func Dial(address string) (*Client, error) {
	conn, err := rpc.Dial(address)
	if err != nil {
		return nil, err
	}
	files := contentrpc.NewHandles(func(ctx context.Context) (contentrpc.Place, error) {
		return findFiles(ctx, noderpc.NewClient(conn))
	})
	return &Client{
		Content:    contentrpc.WithHandles(contentrpc.NewClient(conn), files),
		Snapshots:  snapshotrpc.NewClient(conn),
		Diffs:      diffrpc.NewClient(conn),
		Unpacking:  unpackrpc.NewClient(conn),
		Images:     imagerpc.NewClient(conn),
		Leases:     leaserpc.NewClient(conn),
		Namespaces: namespacerpc.NewClient(conn),
		Containers: containerrpc.NewClient(conn),
		Tasks:      taskrpc.NewClient(conn),
		Events:     eventrpc.NewClient(conn),
		conn:       closers{files, conn},
	}, nil
}

// findFiles asks where the content store hands out files. Whether this process
// can reach the place, and may, shows when it tries.
func findFiles(ctx context.Context, n suite.Node) (contentrpc.Place, error) {
	p, err := n.Plugin(ctx, suite.ContentPlugin, suite.ContentPluginID)
	if err != nil {
		return contentrpc.Place{}, err
	}
	place := contentrpc.Place{Socket: p.Exports[suite.ExportBlobsSocket], Store: p.Exports[suite.ExportBlobsStore]}
	if place.Socket == "" || place.Store == "" {
		return contentrpc.Place{}, fmt.Errorf("the content store hands out no files: %w", errdefs.ErrNotImplemented)
	}
	return place, nil
}

// closers are closed together.
type closers []io.Closer

func (all closers) Close() error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
