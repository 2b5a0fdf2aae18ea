package leaserpc

import (
	"context"
	"fmt"
	"strconv"

	leasepb "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	leasev1 "github.com/gantryd/gantry/proto/gantry/lease/v1"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

// NewClient returns the leases at the other end of c.
func NewClient(c grpc.ClientConnInterface) lease.Stores {
	return stores{c: leasepb.NewLeasesClient(c)}
}

// NewRegistry returns the registry at the other end of c.
func NewRegistry(c grpc.ClientConnInterface) lease.Registry {
	return registry{c: leasev1.NewRegistryClient(c)}
}

// NewMembers returns the members that the daemon at the other end of c keeps.
func NewMembers(c grpc.ClientConnInterface) lease.Members {
	return members{c: leasev1.NewMembersClient(c)}
}

type stores struct{ c leasepb.LeasesClient }

func (s stores) In(scope namespace.Scope) lease.Store {
	return client{c: s.c, scope: namespace.Scope{Name: scope.Name}}
}

type client struct {
	c     leasepb.LeasesClient
	scope namespace.Scope
}

func (c client) Create(ctx context.Context, id string, labels map[string]string) (lease.Lease, error) {
	resp, err := c.c.Create(rpc.WithScope(ctx, c.scope), &leasepb.CreateRequest{ID: id, Labels: labels})
	if err != nil {
		return lease.Lease{}, err
	}
	return fromLease(resp.GetLease()), nil
}

// Get asks for a list of one: containerd's service has no Get.
func (c client) Get(ctx context.Context, id string) (lease.Lease, error) {
	leases, err := c.List(ctx, "id=="+strconv.Quote(id))
	if err != nil {
		return lease.Lease{}, err
	}
	for _, l := range leases {
		if l.ID == id {
			return l, nil
		}
	}
	return lease.Lease{}, fmt.Errorf("lease %q: %w", id, errdefs.ErrNotFound)
}

func (c client) Delete(ctx context.Context, id string, sync bool) error {
	_, err := c.c.Delete(rpc.WithScope(ctx, c.scope), &leasepb.DeleteRequest{ID: id, Sync: sync})
	return err
}

func (c client) List(ctx context.Context, filters ...string) ([]lease.Lease, error) {
	resp, err := c.c.List(rpc.WithScope(ctx, c.scope), &leasepb.ListRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	var leases []lease.Lease
	for _, l := range resp.GetLeases() {
		leases = append(leases, fromLease(l))
	}
	return leases, nil
}

func (c client) AddResource(ctx context.Context, id string, r lease.Resource) error {
	_, err := c.c.AddResource(rpc.WithScope(ctx, c.scope), &leasepb.AddResourceRequest{
		ID:       id,
		Resource: &leasepb.Resource{ID: r.ID, Type: r.Type},
	})
	return err
}

func (c client) DeleteResource(ctx context.Context, id string, r lease.Resource) error {
	_, err := c.c.DeleteResource(rpc.WithScope(ctx, c.scope), &leasepb.DeleteResourceRequest{
		ID:       id,
		Resource: &leasepb.Resource{ID: r.ID, Type: r.Type},
	})
	return err
}

func (c client) ListResources(ctx context.Context, id string) ([]lease.Resource, error) {
	resp, err := c.c.ListResources(rpc.WithScope(ctx, c.scope), &leasepb.ListResourcesRequest{ID: id})
	if err != nil {
		return nil, err
	}
	var resources []lease.Resource
	for _, r := range resp.GetResources() {
		resources = append(resources, fromResource(r))
	}
	return resources, nil
}

type registry struct{ c leasev1.RegistryClient }

// Lookup sends the id in the message: a header cannot hold every id.
func (r registry) Lookup(ctx context.Context, scope namespace.Scope) (lease.Ref, error) {
	ctx = rpc.WithScope(ctx, namespace.Scope{Name: scope.Name})
	resp, err := r.c.Lookup(ctx, &leasev1.LookupRequest{Id: scope.Lease})
	if err != nil {
		return lease.Ref{}, err
	}
	return fromRef(resp.GetLease()), nil
}

type members struct{ c leasev1.MembersClient }

func (m members) AddMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	_, err := m.c.AddMember(rpc.WithScope(ctx, namespace.Scope{Name: ns}), &leasev1.AddMemberRequest{
		Lease:    toRef(l),
		Resource: &leasev1.Resource{Id: r.ID, Type: r.Type},
	})
	return err
}

func (m members) RemoveMember(ctx context.Context, ns string, l lease.Ref, r lease.Resource) error {
	_, err := m.c.RemoveMember(rpc.WithScope(ctx, namespace.Scope{Name: ns}), &leasev1.RemoveMemberRequest{
		Lease:    toRef(l),
		Resource: &leasev1.Resource{Id: r.ID, Type: r.Type},
	})
	return err
}

func (m members) ListMembers(ctx context.Context, ns string, l lease.Ref) ([]lease.Resource, error) {
	resp, err := m.c.ListMembers(rpc.WithScope(ctx, namespace.Scope{Name: ns}), &leasev1.ListMembersRequest{Lease: toRef(l)})
	if err != nil {
		return nil, err
	}
	var resources []lease.Resource
	for _, r := range resp.GetResources() {
		resources = append(resources, lease.Resource{ID: r.GetId(), Type: r.GetType()})
	}
	return resources, nil
}

func (m members) DropMembers(ctx context.Context, ns string, l lease.Ref) error {
	_, err := m.c.DropMembers(rpc.WithScope(ctx, namespace.Scope{Name: ns}), &leasev1.DropMembersRequest{Lease: toRef(l)})
	return err
}
