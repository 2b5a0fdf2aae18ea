// Package namespace is the contract of namespaces: the tenants of a node, who
// share bytes and see nothing of each other.
//
// A namespace exists when it was created, and also as long as any daemon keeps
// a record in it. Deleting one forgets its labels and ends its leases.
package namespace

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/label"
)

// A Scope says for whom a call is made: whose objects it sees, and which lease
// keeps what it creates. It is an argument of every contract (In), never a
// value hidden in a context.
type Scope struct {
	Name  string // of the namespace; an identifier
	Lease string // id of a lease in that namespace, or empty
}

// Check is [errdefs.ErrFailedPrecondition] if the scope names no namespace and
// [errdefs.ErrInvalidArgument] if the name is not an identifier.
func (s Scope) Check() error {
	if s.Name == "" {
		return fmt.Errorf("namespace is required: %w", errdefs.ErrFailedPrecondition)
	}
	if err := ident.Check(s.Name); err != nil {
		return fmt.Errorf("namespace validation: %w", err)
	}
	return nil
}

// Labels with a meaning to the suite or to containerd's clients.
const (
	LabelShareable   = "containerd.io/namespace.shareable"
	LabelSnapshotter = "containerd.io/defaults/snapshotter"
	LabelRuntime     = "containerd.io/defaults/runtime"
)

// An Info is what is known of a namespace.
type Info struct {
	Name   string
	Labels map[string]string
}

// A Store keeps namespaces and their labels.
//
// A label set to "" is deleted, on Create too. Methods may be called from any
// goroutine.
type Store interface {
	// Get returns a namespace. One that nobody created has no labels and is
	// not an error: clients ask for defaults before they create anything.
	Get(ctx context.Context, name string) (Info, error)

	// List returns every namespace, created or merely in use, in byte order
	// of the names. One that is merely in use is missing while the daemon that
	// keeps something in it does not answer.
	List(ctx context.Context) ([]Info, error)

	// Create is [errdefs.ErrAlreadyExists] if the namespace was created
	// before and [errdefs.ErrInvalidArgument] for a bad name or label.
	Create(ctx context.Context, info Info) (Info, error)

	// Update sets labels and creates the namespace if it is missing. Without
	// fields it replaces all labels. A field is "labels.<key>", and anything
	// else, a bad name and a bad label are [errdefs.ErrInvalidArgument].
	Update(ctx context.Context, info Info, fields ...string) (Info, error)

	// Delete is [errdefs.ErrNotFound] if the namespace neither was created nor
	// is in use, [errdefs.ErrFailedPrecondition] with a list of what is in it
	// if it is not empty, and [errdefs.ErrUnavailable] if a daemon that could
	// hold something of it does not answer. Leases are no holding: they end
	// with their namespace. What is written meanwhile brings the namespace
	// back, without labels.
	Delete(ctx context.Context, name string) error
}

// A Holding is the fact that some records of a kind exist in a namespace.
type Holding struct {
	Namespace string
	Kind      string // KindImages and its like
	Of        string // the snapshotter, for snapshots
}

// The kinds of holdings, in the order in which people are told of them.
const (
	KindImages     = "images"
	KindBlobs      = "blobs"
	KindContainers = "containers"
	KindSnapshots  = "snapshots"
)

// String is the holding in the words of [NotEmpty].
func (h Holding) String() string {
	if h.Of == "" {
		return h.Kind
	}
	return fmt.Sprintf("%s on %q snapshotter", h.Kind, h.Of)
}

// NotEmpty is the error of Delete for a namespace that has holdings: clients
// show its text.
func NotEmpty(name string, holdings []Holding) error {
	var order = []string{KindImages, KindBlobs, KindContainers, KindSnapshots}
	holdings = slices.Clone(holdings)
	slices.SortFunc(holdings, func(a, b Holding) int {
		return cmp.Or(
			cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind)),
			cmp.Compare(a.Kind, b.Kind),
			cmp.Compare(a.Of, b.Of))
	})
	var words []string
	for _, h := range slices.Compact(holdings) {
		words = append(words, h.String())
	}
	return fmt.Errorf("namespace %q must be empty, but it still has %s: %w",
		name, strings.Join(words, ", "), errdefs.ErrFailedPrecondition)
}

// UpdateLabels returns what is left of old when a request gives new and names
// fields: the rule of [Store.Update].
func UpdateLabels(old, new map[string]string, fields []string) (map[string]string, error) {
	for _, f := range fields {
		if f == "labels" {
			return nil, fmt.Errorf("cannot update field %q: %w", f, errdefs.ErrInvalidArgument)
		}
	}
	return label.Update(old, new, fields)
}

// A Holder is a daemon that keeps records in namespaces. The namespace store
// asks every holder instead of being told by each: a daemon that writes need
// not wait for the one that knows the labels.
type Holder interface {
	// Holdings returns one Holding per namespace and kind that has at least
	// one record.
	Holdings(ctx context.Context) ([]Holding, error)
}
