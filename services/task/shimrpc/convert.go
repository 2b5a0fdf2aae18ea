package shimrpc

import (
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

func fromState(p *api.StateResponse, id, exec string) task.Process {
	q := task.Process{
		ContainerID: id,
		ExecID:      exec,
		Pid:         p.Pid,
		Status:      fromStatus(p.Status),
		IO:          task.IO{Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Terminal: p.Terminal},
	}
	if q.Status == task.Stopped {
		q.Exit = task.Exit{Pid: p.Pid, Status: p.ExitStatus, At: fromTime(p.ExitedAt)}
	}
	return q
}

func fromStatus(s tasktypes.Status) task.Status {
	switch s {
	case tasktypes.Status_CREATED:
		return task.Created
	case tasktypes.Status_RUNNING:
		return task.Running
	case tasktypes.Status_STOPPED:
		return task.Stopped
	case tasktypes.Status_PAUSED:
		return task.Paused
	case tasktypes.Status_PAUSING:
		return task.Pausing
	}
	return task.Unknown
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

func fromTime(p *timestamppb.Timestamp) time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.AsTime()
}
