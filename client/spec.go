package client

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/typed"
)

// Type names of the JSON that travels in typed values, containerd's.
const (
	specURL    = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	processURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
)

// SpecOptions say what NewSpec makes a spec of.
type SpecOptions struct {
	Namespace string // the container's
	ID        string // the container's
	Program   Program
	Mounts    []specs.Mount // besides those that every container has
	ReadOnly  bool          // the root file system cannot be written
	HostNet   bool          // the node's network instead of an empty one
	OnNetwork bool          // its network becomes one that others are on too
}

// NewSpec makes the spec of a container for Linux: namespaces and a cgroup of
// its own, the usual small file systems, a short list of capabilities, and the
// files of /proc and /sys hidden that tell of the node or change it. There is
// no seccomp profile and no LSM label in it yet.
//
// What it makes depends on nothing but its arguments.
func NewSpec(o SpecOptions) (*specs.Spec, error) {
	if err := ident.Check(o.Namespace); err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	if err := ident.Check(o.ID); err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	process, err := o.Program.process()
	if err != nil {
		return nil, err
	}
	for _, m := range o.Mounts {
		if err := checkMount(m); err != nil {
			return nil, err
		}
	}
	if o.OnNetwork {
		withoutRawSockets(process.Capabilities)
	}
	namespaces := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
	}
	if !o.HostNet {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	return &specs.Spec{
		Version:  specVersion,
		Process:  process,
		Root:     &specs.Root{Path: "rootfs", Readonly: o.ReadOnly},
		Hostname: hostname(o.ID),
		Mounts:   append(standardMounts(), o.Mounts...),
		Linux: &specs.Linux{
			CgroupsPath: path.Join("/gantry", o.Namespace, o.ID),
			Namespaces:  namespaces,
			Resources: &specs.LinuxResources{
				// The first rule denies everything; the runtime adds the
				// devices that every container has.
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
			MaskedPaths:   maskedPaths(),
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}, nil
}

// specVersion is the oldest version of the specification that has all that is
// used here; older runtimes refuse newer ones.
const specVersion = "1.0.2"

// hostnameMax is the kernel's limit.
const hostnameMax = 64

func hostname(id string) string {
	if len(id) > hostnameMax {
		id = strings.TrimRight(id[:hostnameMax], "-._")
	}
	return id
}

// standardMounts always has one over /dev and one over /proc: what an image
// has there must not be what the runtime works on.
func standardMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "strictatime", "mode=755", "size=65536k"}},
	}
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi",
		"/proc/asound",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/proc/timer_list",
		"/proc/timer_stats",
		"/sys/devices/virtual/powercap",
		"/sys/firmware",
	}
}

// checkMount refuses what a caller should not put over the runtime's own
// mounts.
func checkMount(m specs.Mount) error {
	clean := path.Clean(m.Destination)
	switch {
	case !path.IsAbs(m.Destination), clean == "/":
		return fmt.Errorf("mount on %q: not an absolute path below the root: %w", m.Destination, errdefs.ErrInvalidArgument)
	case clean == "/proc", strings.HasPrefix(clean, "/proc/"), clean == "/sys", strings.HasPrefix(clean, "/sys/"):
		return fmt.Errorf("mount on %q: nothing is mounted over /proc or /sys: %w", m.Destination, errdefs.ErrInvalidArgument)
	}
	return nil
}

// specValue returns a spec as a container record keeps it.
func specValue(s *specs.Spec) (*typed.Value, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	return &typed.Value{URL: specURL, Data: b}, nil
}
