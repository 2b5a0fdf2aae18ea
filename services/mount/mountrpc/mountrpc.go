// Package mountrpc spells mounts as containerd's services do.
package mountrpc

import (
	"github.com/containerd/containerd/api/types"

	"github.com/gantryd/gantry/services/mount"
)

// To returns the messages of all.
func To(all []mount.Mount) []*types.Mount {
	var out []*types.Mount
	for _, m := range all {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

// From returns the mounts of all.
func From(all []*types.Mount) []mount.Mount {
	var out []mount.Mount
	for _, m := range all {
		out = append(out, mount.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}
