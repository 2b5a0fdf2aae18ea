// Package tasktest holds the promises of [task.Service], a service in memory
// that keeps them, and a shim in memory for tests of what drives shims.
package tasktest

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/container"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// A Node is what the promises are tried on. Its containers find the programs of
// [DefaultPrograms] under their names.
type Node struct {
	Tasks      task.Services
	Containers container.Stores

	Spec    func(args ...string) typed.Value // of a container; nil is [Spec]
	Process func(args ...string) typed.Value // of an exec; nil is [Process]
	Rootfs  []mount.Mount
}

// Spec is the least OCI spec: enough for [Memory] and [Shim].
func Spec(args ...string) typed.Value {
	return typed.Value{
		URL:  "types.containerd.io/opencontainers/runtime-spec/1/Spec",
		Data: marshal(map[string]any{"ociVersion": "1.0.2", "process": map[string]any{"args": args}}),
	}
}

// Process is the least OCI process.
func Process(args ...string) typed.Value {
	return typed.Value{
		URL:  "types.containerd.io/opencontainers/runtime-spec/1/Process",
		Data: marshal(map[string]any{"args": args}),
	}
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("tasktest: " + err.Error()) // only strings
	}
	return b
}

// Run tests the nodes that open returns. It calls open once per promise and
// expects an empty node each time.
func Run(t *testing.T, open func(t *testing.T) Node) {
	for _, p := range promises {
		t.Run(p.name, func(t *testing.T) {
			n := open(t)
			if n.Spec == nil {
				n.Spec = Spec
			}
			if n.Process == nil {
				n.Process = Process
			}
			p.check(&node{T: t, Node: n, Service: n.Tasks.In(one)})
		})
	}
}

var (
	one = namespace.Scope{Name: "one"}
	two = namespace.Scope{Name: "two"}
)

// patience is for what must happen at once, on a machine that is busy.
const patience = 30 * time.Second

// A node is a Node within one promise.
type node struct {
	*testing.T
	Node
	task.Service // of namespace one
}

// container makes the record of a container that runs args.
func (n *node) container(scope namespace.Scope, id string, args ...string) {
	n.Helper()
	spec := n.Spec(args...)
	_, err := n.Containers.In(scope).Create(n.Context(), container.Container{
		ID:      id,
		Runtime: container.Runtime{Name: MemoryRuntime},
		Spec:    &spec,
	})
	if err != nil {
		n.Fatalf("container %s: %v", id, err)
	}
}

// created makes a container and its task.
func (n *node) created(id string, args ...string) (pid uint32) {
	n.Helper()
	n.container(one, id, args...)
	pid, err := n.Create(n.Context(), task.CreateRequest{ContainerID: id, Rootfs: n.Rootfs})
	if err != nil {
		n.Fatalf("Create(%s): %v", id, err)
	}
	return pid
}

// started makes a container whose task runs.
func (n *node) started(id string, args ...string) (pid uint32) {
	n.Helper()
	made := n.created(id, args...)
	pid, err := n.Start(n.Context(), id, "")
	if err != nil {
		n.Fatalf("Start(%s): %v", id, err)
	}
	if pid == 0 || pid != made {
		n.Errorf("Start(%s): pid %d, Create said %d", id, pid, made)
	}
	return pid
}

func (n *node) exec(id, exec string, args ...string) {
	n.Helper()
	err := n.Exec(n.Context(), task.ExecRequest{ContainerID: id, ExecID: exec, Spec: n.Process(args...)})
	if err != nil {
		n.Fatalf("Exec(%s, %s): %v", id, exec, err)
	}
}

func (n *node) waited(id, exec string) task.Exit {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), patience)
	defer cancel()
	e, err := n.Wait(ctx, id, exec)
	if err != nil {
		n.Fatalf("Wait(%s, %q): %v", id, exec, err)
	}
	return e
}

func (n *node) wantStatus(id, exec string, want task.Status) task.Process {
	n.Helper()
	p, err := n.Get(n.Context(), id, exec)
	if err != nil {
		n.Fatalf("Get(%s, %q): %v", id, exec, err)
	}
	if p.Status != want {
		n.Errorf("Get(%s, %q): status %s, want %s", id, exec, p.Status, want)
	}
	return p
}

func (n *node) wantKind(what string, err, kind error) {
	n.Helper()
	if !errors.Is(err, kind) {
		n.Errorf("%s: got error %v, want %v", what, err, kind)
	}
}

func (n *node) must(what string, err error) {
	n.Helper()
	if err != nil {
		n.Fatalf("%s: %v", what, err)
	}
}
