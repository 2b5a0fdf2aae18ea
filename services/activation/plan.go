package activation

import (
	"slices"
	"strings"

	"github.com/gantryd/gantry/services/mount"
)

// The transforms: words before the type of a mount, with a slash.
const (
	Format = "format" // see [Expand]
	Mkdir  = "mkdir"  // see [TakeDirs]
	Mkfs   = "mkfs"   // see [TakeImage]
)

// A Plan is who does what of an activation. The store makes the mounts before
// First and applies the transforms of the one at First; the caller does the
// rest.
type Plan struct {
	First int // -1 if there is nothing for the store to do
	Steps []Step
}

// A Step is what the store does of one mount: it applies transforms, in their
// order. The type is what is left then.
type Step struct {
	Transforms []string
	Type       string
}

// NewPlan decides who does what. A store has to make what is before something
// that it transforms or makes, because that may refer to it. It makes mounts of
// the types in handled, and with o.Temporary all. It transforms what it makes,
// and the mount after that; but for the caller's own transforms at the end of
// that one, which nothing waits for.
func NewPlan(mounts []mount.Mount, o Options, handled ...string) Plan {
	p := Plan{First: -1, Steps: make([]Step, len(mounts))}
	rest := make([]Step, len(mounts)) // as of who only transforms
	for i, m := range mounts {
		words, typ := split(m.Type)
		// The last word that is not the caller's, with all before it.
		own := 0
		for j, w := range words {
			if !slices.Contains(o.AllowTransforms, w) && !slices.Contains(o.AllowTypes, m.Type) {
				own = j + 1
			}
		}
		if own > 0 {
			p.First = i
		}
		p.Steps[i] = Step{words, typ}
		rest[i] = Step{words[:own], strings.Join(append(slices.Clone(words[own:]), typ), "/")}
		if o.Temporary || slices.Contains(handled, typ) && !slices.Contains(o.AllowTypes, typ) {
			p.First = i + 1
		}
	}
	if p.First >= 0 && p.First < len(mounts) {
		p.Steps[p.First] = rest[p.First]
	}
	return p
}

// split cuts the transforms off a type. It stops at a word that is none.
func split(typ string) (words []string, rest string) {
	for {
		word, after, ok := strings.Cut(typ, "/")
		if !ok || word != Format && word != Mkdir && word != Mkfs {
			return words, typ
		}
		words, typ = append(words, word), after
	}
}
