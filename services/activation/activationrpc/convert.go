package activationrpc

import (
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/activation"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/mount/mountrpc"
)

func toInfo(i activation.Info) *types.ActivationInfo {
	out := &types.ActivationInfo{Name: i.Name, System: mountrpc.To(i.System), Labels: i.Labels}
	for _, a := range i.Active {
		out.Active = append(out.Active, &types.ActiveMount{
			Mount: mountrpc.To([]mount.Mount{a.Mount})[0], MountedAt: timestamppb.New(a.MountedAt),
			MountPoint: a.MountPoint, Data: a.Data,
		})
	}
	return out
}

func fromInfo(i *types.ActivationInfo) activation.Info {
	out := activation.Info{Name: i.GetName(), System: mountrpc.From(i.GetSystem()), Labels: i.GetLabels()}
	for _, a := range i.GetActive() {
		out.Active = append(out.Active, activation.Active{
			Mount: mountrpc.From([]*types.Mount{a.GetMount()})[0], MountedAt: a.GetMountedAt().AsTime(),
			MountPoint: a.GetMountPoint(), Data: a.GetData(),
		})
	}
	return out
}
