package taskrpc

import (
	"time"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

var statuses = map[task.Status]tasktypes.Status{
	task.Unknown: tasktypes.Status_UNKNOWN,
	task.Created: tasktypes.Status_CREATED,
	task.Running: tasktypes.Status_RUNNING,
	task.Stopped: tasktypes.Status_STOPPED,
	task.Paused:  tasktypes.Status_PAUSED,
	task.Pausing: tasktypes.Status_PAUSING,
}

func fromStatus(p tasktypes.Status) task.Status {
	for s, q := range statuses {
		if p == q {
			return s
		}
	}
	return task.Unknown
}

// On the wire a process has one id: that of the exec, or else of the container.
func toProcess(p task.Process) *tasktypes.Process {
	id := p.ExecID
	if id == "" {
		id = p.ContainerID
	}
	return &tasktypes.Process{
		ContainerID: p.ContainerID,
		ID:          id,
		Pid:         p.Pid,
		Status:      statuses[p.Status],
		Stdin:       p.IO.Stdin,
		Stdout:      p.IO.Stdout,
		Stderr:      p.IO.Stderr,
		Terminal:    p.IO.Terminal,
		ExitStatus:  p.Exit.Status,
		ExitedAt:    toTime(p.Exit.At),
	}
}

func fromProcess(p *tasktypes.Process, id, exec string) task.Process {
	q := task.Process{
		ContainerID: id,
		ExecID:      exec,
		Pid:         p.GetPid(),
		Status:      fromStatus(p.GetStatus()),
		IO:          task.IO{Stdin: p.GetStdin(), Stdout: p.GetStdout(), Stderr: p.GetStderr(), Terminal: p.GetTerminal()},
	}
	if q.Status == task.Stopped {
		q.Exit = task.Exit{Pid: q.Pid, Status: p.GetExitStatus(), At: fromTime(p.GetExitedAt())}
	}
	return q
}

func toDeleted(id string, e task.Exit) *api.DeleteResponse {
	return &api.DeleteResponse{ID: id, Pid: e.Pid, ExitStatus: e.Status, ExitedAt: toTime(e.At)}
}

func fromDeleted(p *api.DeleteResponse) task.Exit {
	return task.Exit{Pid: p.GetPid(), Status: p.GetExitStatus(), At: fromTime(p.GetExitedAt())}
}

func toDescriptor(d *ocispec.Descriptor) *types.Descriptor {
	if d == nil {
		return nil
	}
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

func fromDescriptor(p *types.Descriptor) *ocispec.Descriptor {
	if p == nil {
		return nil
	}
	return &ocispec.Descriptor{MediaType: p.MediaType, Digest: digest.Digest(p.Digest), Size: p.Size, Annotations: p.Annotations}
}

func toAny(v *typed.Value) *anypb.Any {
	if v == nil {
		return nil
	}
	return &anypb.Any{TypeUrl: v.URL, Value: v.Data}
}

func fromAny(a *anypb.Any) *typed.Value {
	if a == nil {
		return nil
	}
	return &typed.Value{URL: a.TypeUrl, Data: a.Value}
}

func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTime(p *timestamppb.Timestamp) time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.AsTime()
}
