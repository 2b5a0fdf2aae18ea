package gctest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/lease"
)

// A Coordinator is a small one, to test owners with. It takes every condition
// for met.
type Coordinator struct {
	Owners []gc.Owner
	// Leases returns those that there are, by namespace.
	Leases func() map[string][]lease.Ref
	// Now is the clock of the deadlines.
	Now func() gc.Instant

	Epoch gc.Epoch // of the cycle that goes on, or went on last
	// Unanswered says that a Sweep may still be heard, for all that is known.
	Unanswered bool

	leases   map[string][]lease.Ref
	marked   []map[gc.Node]gc.Object // by owner
	noted    map[gc.Node]bool
	deadline gc.Instant
}

// Cycle runs a whole one, and returns how many objects were removed.
func (c *Coordinator) Cycle(ctx context.Context) (int, error) {
	n, err := 0, c.Begin(ctx)
	if err == nil {
		err = c.Mark(ctx)
	}
	if err == nil {
		err = c.Freeze(ctx, gc.HoldMax)
	}
	if err == nil {
		n, err = c.Sweep(ctx)
	}
	return n, errors.Join(err, c.End(ctx))
}

// Begin begins a cycle everywhere.
func (c *Coordinator) Begin(ctx context.Context) error {
	c.Start()
	for i := range c.Owners {
		if err := c.BeginOne(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// Start makes a new epoch.
func (c *Coordinator) Start() {
	c.Epoch++
	c.leases, c.deadline, c.Unanswered = nil, 0, false
	c.noted = map[gc.Node]bool{}
	c.marked = make([]map[gc.Node]gc.Object, len(c.Owners))
}

// BeginOne begins the cycle with one owner.
func (c *Coordinator) BeginOne(ctx context.Context, i int) error {
	return c.Owners[i].Begin(ctx, c.Epoch)
}

// Mark reads the leases and then the graph.
func (c *Coordinator) Mark(ctx context.Context) error {
	c.ReadLeases()
	for i := range c.Owners {
		if err := c.MarkOne(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// ReadLeases comes before the first MarkOne.
func (c *Coordinator) ReadLeases() {
	if c.Leases != nil {
		c.leases = c.Leases()
	}
}

// MarkOne reads what one owner has.
func (c *Coordinator) MarkOne(ctx context.Context, i int) error {
	c.marked[i] = map[gc.Node]gc.Object{}
	for o, err := range c.Owners[i].Mark(ctx, c.Epoch) {
		if err != nil {
			return err
		}
		c.marked[i][o.Node] = o
	}
	return nil
}

// Freeze freezes every owner for a time at most.
func (c *Coordinator) Freeze(ctx context.Context, d time.Duration) error {
	for i := range c.Owners {
		if err := c.FreezeOne(ctx, i, d); err != nil {
			return err
		}
	}
	return nil
}

// FreezeOne freezes one owner: all until the same instant, which is the first
// one's.
func (c *Coordinator) FreezeOne(ctx context.Context, i int, d time.Duration) error {
	if c.deadline == 0 {
		c.deadline = c.Now().Add(d)
	}
	for o, err := range c.Owners[i].Freeze(ctx, c.Epoch, c.deadline) {
		if err != nil {
			return err
		}
		c.marked[i][o.Node] = o
		c.noted[o.Node] = true
	}
	return nil
}

// Sweep removes what is dead.
func (c *Coordinator) Sweep(ctx context.Context) (int, error) {
	total := 0
	for _, p := range c.Dead() {
		n, err := c.SweepPart(ctx, p)
		if total += n; err != nil {
			return total, err
		}
	}
	return total, nil
}

// SweepPart removes some of what is dead.
func (c *Coordinator) SweepPart(ctx context.Context, p Part) (int, error) {
	n, err := c.Owners[p.Owner].Sweep(ctx, c.Epoch, p.Nodes)
	if err != nil {
		c.Unanswered = true
	}
	return n, err
}

// End ends the cycle everywhere, unless a Sweep was not answered: the owners
// then go on by themselves.
func (c *Coordinator) End(ctx context.Context) error {
	if c.Unanswered {
		return nil
	}
	var failed error
	for i := range c.Owners {
		failed = errors.Join(failed, c.Owners[i].End(ctx, c.Epoch))
	}
	return failed
}

// A Part is what one Sweep is to remove.
type Part struct {
	Owner int
	Nodes []gc.Node
}

// Dead returns what nobody needs, in the order of the contract.
func (c *Coordinator) Dead() []Part {
	keeps, owner, grey := c.edges()
	live := map[gc.Node]bool{}
	for len(grey) > 0 {
		n := grey[len(grey)-1]
		grey = grey[:len(grey)-1]
		if !live[n] {
			live[n] = true
			grey = append(grey, keeps[n]...)
		}
	}
	// Who was finished last refers to those before.
	var done []gc.Node
	seen := map[gc.Node]bool{}
	var visit func(n gc.Node)
	visit = func(n gc.Node) {
		if _, there := owner[n]; seen[n] || live[n] || !there {
			return
		}
		seen[n] = true
		for _, to := range keeps[n] {
			visit(to)
		}
		done = append(done, n)
	}
	for _, n := range sortedNodes(owner) {
		visit(n)
	}
	slices.Reverse(done)
	var parts []Part
	for _, n := range done {
		last := len(parts) - 1
		if last < 0 || parts[last].Owner != owner[n] || len(parts[last].Nodes) == gc.SweepMax {
			parts = append(parts, Part{Owner: owner[n]})
			last++
		}
		parts[last].Nodes = append(parts[last].Nodes, n)
	}
	return parts
}

// edges returns what keeps what, who owns what, and the roots.
func (c *Coordinator) edges() (keeps map[gc.Node][]gc.Node, owner map[gc.Node]int, roots []gc.Node) {
	keeps, owner = map[gc.Node][]gc.Node{}, map[gc.Node]int{}
	for i, all := range c.marked {
		for n, o := range all {
			owner[n] = i
			if o.Root || c.noted[n] || slices.ContainsFunc(o.Leases, func(l lease.Ref) bool { return slices.Contains(c.leases[n.Namespace], l) }) {
				roots = append(roots, n)
			}
			for _, r := range o.Refs {
				keeps[n] = append(keeps[n], gc.Node{Namespace: n.Namespace, Resource: r})
			}
			for _, r := range o.Backs {
				by := gc.Node{Namespace: n.Namespace, Resource: r}
				keeps[by] = append(keeps[by], n)
			}
			if len(o.Conds) > 0 {
				roots = append(roots, n)
			}
		}
	}
	return keeps, owner, roots
}

func sortedNodes(of map[gc.Node]int) []gc.Node {
	var all []gc.Node
	for n := range of {
		all = append(all, n)
	}
	slices.SortFunc(all, gc.Node.Compare)
	return all
}
