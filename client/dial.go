package client

import (
	"github.com/gantryd/gantry/services/container/containerrpc"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/diff/diffrpc"
	"github.com/gantryd/gantry/services/event/eventrpc"
	"github.com/gantryd/gantry/services/image/imagerpc"
	"github.com/gantryd/gantry/services/lease/leaserpc"
	"github.com/gantryd/gantry/services/namespace/namespacerpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/snapshot/snapshotrpc"
	"github.com/gantryd/gantry/services/task/taskrpc"
)

// Dial returns a client of the suite whose public door is the socket at
// address. It does not wait for it: a call does, for a short while.
func Dial(address string) (*Client, error) {
	conn, err := rpc.Dial(address)
	if err != nil {
		return nil, err
	}
	return &Client{
		Content:    contentrpc.NewClient(conn),
		Snapshots:  snapshotrpc.NewClient(conn),
		Diffs:      diffrpc.NewClient(conn),
		Images:     imagerpc.NewClient(conn),
		Leases:     leaserpc.NewClient(conn),
		Namespaces: namespacerpc.NewClient(conn),
		Containers: containerrpc.NewClient(conn),
		Tasks:      taskrpc.NewClient(conn),
		Events:     eventrpc.NewClient(conn),
		conn:       conn,
	}, nil
}
