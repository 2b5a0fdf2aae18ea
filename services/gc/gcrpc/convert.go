package gcrpc

import (
	gcv1 "github.com/gantryd/gantry/proto/gantry/gc/v1"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

func toNode(n gc.Node) *gcv1.Node {
	return &gcv1.Node{Namespace: n.Namespace, Type: n.Type, Id: n.ID}
}

func fromNode(n *gcv1.Node) gc.Node {
	return gc.Node{Namespace: n.GetNamespace(), Resource: lease.Resource{Type: n.GetType(), ID: n.GetId()}}
}

func toObject(o gc.Object) *gcv1.Object {
	out := &gcv1.Object{
		Node: toNode(o.Node), Size: o.Size, Root: o.Root, UsedAt: o.UsedAt,
		Refs: toResources(o.Refs), Backs: toResources(o.Backs),
	}
	for _, c := range o.Conds {
		out.Conds = append(out.Conds, &gcv1.Condition{Type: c.Type, Text: c.Text})
	}
	for _, l := range o.Leases {
		out.Leases = append(out.Leases, &gcv1.Lease{Id: l.ID, Generation: l.Generation})
	}
	return out
}

func fromObject(o *gcv1.Object) gc.Object {
	out := gc.Object{
		Node: fromNode(o.GetNode()), Size: o.GetSize(), Root: o.GetRoot(), UsedAt: o.GetUsedAt(),
		Refs: fromResources(o.GetRefs()), Backs: fromResources(o.GetBacks()),
	}
	for _, c := range o.GetConds() {
		out.Conds = append(out.Conds, gc.Condition{Type: c.GetType(), Text: c.GetText()})
	}
	for _, l := range o.GetLeases() {
		out.Leases = append(out.Leases, lease.Ref{ID: l.GetId(), Generation: l.GetGeneration()})
	}
	return out
}

func toResources(all []lease.Resource) []*gcv1.Resource {
	var out []*gcv1.Resource
	for _, r := range all {
		out = append(out, &gcv1.Resource{Type: r.Type, Id: r.ID})
	}
	return out
}

func fromResources(all []*gcv1.Resource) []lease.Resource {
	var out []lease.Resource
	for _, r := range all {
		out = append(out, lease.Resource{Type: r.GetType(), ID: r.GetId()})
	}
	return out
}
