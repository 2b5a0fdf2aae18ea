// Package gate is the contract of gates: who is asked before a container's
// first process starts.
//
// A gate is a name that some plugin answers by. A container names its gates
// with a label, and so does a namespace for all that is in it. Each is asked
// when the container has been created, with all its namespaces, and nothing in
// it has run; the process starts when every gate has let it pass.
//
// A gate that lets a container pass has not seen it start: another gate may
// deny it, or the caller give up. What a gate made for a container goes when
// the event /tasks/delete tells that the container's task has.
package gate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
)

// Label is the label of a container, or of a namespace, whose value is the names
// of gates, with commas between them. The name of a gate is an identifier.
const Label = "gantry.dev/gates"

const (
	namesMax  = 16  // gates of one container
	reasonMax = 512 // bytes of a reason
)

// A Request is a container that wants to start.
type Request struct {
	Namespace string            `json:"namespace"`
	Container string            `json:"container"`
	Pid       int               `json:"pid"` // of its first process, which waits
	Labels    map[string]string `json:"labels,omitempty"`
}

// Check is [errdefs.ErrInvalidArgument] unless namespace and container are
// identifiers and there is a process.
func (r Request) Check() error {
	for _, name := range []string{r.Namespace, r.Container} {
		if err := ident.Check(name); err != nil {
			return fmt.Errorf("question for a gate: %w", err)
		}
	}
	if r.Pid <= 0 {
		return fmt.Errorf("question for a gate: no process has pid %d: %w", r.Pid, errdefs.ErrInvalidArgument)
	}
	return nil
}

// A Gate answers by a name. Its methods are called from any goroutine.
type Gate interface {
	// Pass returns nil when the container may start. The text of an error is
	// the reason why it may not, for people, in one line.
	//
	// The same container may be asked about again, after an answer that got
	// lost: then Pass finds its work done. An answer that comes when ctx has
	// ended is told to nobody.
	Pass(ctx context.Context, r Request) error
}

// A Func is a Gate.
type Func func(ctx context.Context, r Request) error

// Pass implements Gate.
func (f Func) Pass(ctx context.Context, r Request) error { return f(ctx, r) }

// An Asker asks gates. Its methods are called from any goroutine.
type Asker interface {
	// Ask asks a gate once and returns its answer; if several answer, the
	// first. It is nil if the container may start, and
	// [errdefs.ErrFailedPrecondition] with the gate's reason if not.
	//
	// Nobody answers by that name now: [errdefs.ErrNotFound]. There is no way
	// to ask now: [errdefs.ErrUnavailable]. The answer is none that the
	// contract knows: [errdefs.ErrInternal]. A bad name, a bad request and one
	// that is too large to ask: [errdefs.ErrInvalidArgument]. No answer came
	// before ctx ended: its error.
	Ask(ctx context.Context, name string, r Request) error
}

// Denied is the error of a gate that does not let a container pass.
func Denied(name, reason string) error {
	return fmt.Errorf("gate %s denies it: %s: %w", name, Reason(reason), errdefs.ErrFailedPrecondition)
}

// Reason returns one line of readable text, of bounded length, whatever a gate
// said.
func Reason(said string) string {
	if len(said) > 4*reasonMax {
		said = said[:4*reasonMax]
	}
	words := strings.FieldsFunc(strings.ToValidUTF8(said, "?"), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
	line := strings.Join(words, " ")
	if len(line) > reasonMax {
		line = strings.ToValidUTF8(line[:reasonMax], "") + " ..."
	}
	if line == "" {
		return "no reason is given"
	}
	return line
}

// Names returns the gates that maps of labels name together, each once, in byte
// order. A label that names none, too many, or something that is no identifier
// is [errdefs.ErrInvalidArgument].
func Names(labels ...map[string]string) ([]string, error) {
	var all []string
	for _, l := range labels {
		value, ok := l[Label]
		if !ok {
			continue
		}
		for name := range strings.SplitSeq(value, ",") {
			name = strings.TrimSpace(name)
			if err := ident.Check(name); err != nil {
				return nil, fmt.Errorf("label %s: %w", Label, err)
			}
			all = append(all, name)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > namesMax {
		return nil, fmt.Errorf("label %s: %d gates are more than %d: %w", Label, len(all), namesMax, errdefs.ErrInvalidArgument)
	}
	return all, nil
}
