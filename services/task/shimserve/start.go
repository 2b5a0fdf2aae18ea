package shimserve

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
)

const (
	optionsName  = "containerd.runc.v1.Options"
	detailsName  = "containerd.runc.v1.ProcessDetails"
	featuresName = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
)

// A Start is what a daemon tells the shim that it starts.
type Start struct {
	Bootstrap bool // in the form of containerd 2.3 and later, and so is the answer

	Options    runner.Options
	ShimCgroup string // the shim moves there; empty stays

	EventAddress string // where events go, unless the environment says so
	SocketDir    string // where the shim listens; empty is the usual place
	Debug        bool
}

// ParseStart reads what the shim of that id finds on its stdin: a
// BootstrapParams, runtime options in an Any, or nothing. The two messages
// cannot be told apart by their bytes, so that a BootstrapParams is one only if
// it names the shim. What is neither is as good as nothing; options that do
// not decode are [errdefs.ErrInvalidArgument].
func ParseStart(stdin []byte, id, namespace string) (Start, error) {
	var p bootstrap.BootstrapParams
	if proto.Unmarshal(stdin, &p) == nil && p.InstanceID != "" && p.InstanceID == id && (p.Namespace == "" || p.Namespace == namespace) {
		s := Start{
			Bootstrap:    true,
			EventAddress: p.ContainerdTtrpcAddress,
			SocketDir:    p.GetSocketDir(),
			Debug:        p.LogLevel <= bootstrap.LogLevel_LOG_LEVEL_DEBUG,
		}
		for _, e := range p.Extensions {
			if typeName(e.GetValue()) == optionsName {
				return s, s.setOptions(e.Value)
			}
		}
		return s, nil
	}
	var s Start
	var a anypb.Any
	if proto.Unmarshal(stdin, &a) == nil && typeName(&a) == optionsName {
		return s, s.setOptions(&a)
	}
	return s, nil
}

func (s *Start) setOptions(a *anypb.Any) error {
	var o runcoptions.Options
	if err := proto.Unmarshal(a.Value, &o); err != nil {
		return errDecode("runtime options", err, errdefs.ErrInvalidArgument)
	}
	s.Options = fromRunc(&o)
	s.ShimCgroup = o.ShimCgroup
	return nil
}

// typeName is the message's name without what may stand before it.
func typeName(a *anypb.Any) string {
	url := a.GetTypeUrl()
	return url[strings.LastIndexByte(url, '/')+1:]
}

// toOptions reads the options of a task.
func toOptions(a *anypb.Any) (runner.Options, error) {
	switch name := typeName(a); name {
	case "":
		return runner.Options{}, nil
	case optionsName:
		var o runcoptions.Options
		if err := proto.Unmarshal(a.Value, &o); err != nil {
			return runner.Options{}, errDecode("runtime options", err, errdefs.ErrInvalidArgument)
		}
		return fromRunc(&o), nil
	default:
		return runner.Options{}, fmt.Errorf("runtime options of type %q, want %s: %w", name, optionsName, errdefs.ErrInvalidArgument)
	}
}

func fromRunc(o *runcoptions.Options) runner.Options {
	return runner.Options{
		Binary:        o.BinaryName,
		Root:          o.Root,
		SystemdCgroup: o.SystemdCgroup,
		NoPivotRoot:   o.NoPivotRoot,
		NoNewKeyring:  o.NoNewKeyring,
		IOUID:         o.IoUid,
		IOGID:         o.IoGid,
	}
}

// Answer is what the shim prints when it can be reached: protobuf for who
// asked in that form, JSON for everybody else. Version 2 is what every
// containerd that knows no other form understands.
func (s Start) Answer(address string) ([]byte, error) {
	if s.Bootstrap {
		return proto.Marshal(&bootstrap.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"})
	}
	return answerJSON(2, address)
}

// ReadyLine is what the shim prints in serve mode.
func ReadyLine(address string) ([]byte, error) {
	b, err := answerJSON(3, address)
	return append(b, '\n'), err
}

func answerJSON(version int, address string) ([]byte, error) {
	return json.Marshal(struct {
		Version  int    `json:"version"`
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}{version, address, "ttrpc"})
}

// DeleteAnswer is what the shim's delete prints.
func DeleteAnswer(e task.Exit) ([]byte, error) { return proto.Marshal(fromExit(e)) }

// InfoOptions reads what -info finds on stdin.
func InfoOptions(stdin []byte) (runner.Options, error) {
	var a anypb.Any
	if err := proto.Unmarshal(stdin, &a); err != nil {
		return runner.Options{}, errDecode("runtime options", err, errdefs.ErrInvalidArgument)
	}
	return toOptions(&a)
}

// InfoAnswer is what -info prints. Features are what the OCI runtime says of
// itself, in JSON, or nil.
func InfoAnswer(name, version, revision string, stdin, features []byte) ([]byte, error) {
	info := &types.RuntimeInfo{
		Name:    name,
		Version: &types.RuntimeVersion{Version: version, Revision: revision},
	}
	if len(stdin) > 0 {
		info.Options = &anypb.Any{}
		if err := proto.Unmarshal(stdin, info.Options); err != nil {
			return nil, errDecode("runtime options", err, errdefs.ErrInvalidArgument)
		}
	}
	if features != nil {
		info.Features = &anypb.Any{TypeUrl: featuresName, Value: features}
	}
	return proto.Marshal(info)
}

func processDetails(exec string) (*anypb.Any, error) {
	b, err := proto.Marshal(&runcoptions.ProcessDetails{ExecID: exec})
	return &anypb.Any{TypeUrl: detailsName, Value: b}, err
}
