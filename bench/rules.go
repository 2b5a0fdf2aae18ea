package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rules say what is measured, how often, and what it may come to.
type rules struct {
	rounds int
	only   string
	most   limits
	broken []error // limits
}

func (r *rules) flags(fs *flag.FlagSet, rounds int, most string) {
	r.most = limits{}
	fs.IntVar(&r.rounds, "n", rounds, "counted `rounds`; one more comes first")
	fs.StringVar(&r.only, "only", "", "do only these `works`, comma-separated")
	fs.Var(r.most, "most", most)
}

// limits are what is not to be exceeded, by name.
type limits map[string]float64

func (l limits) String() string { return "" }

// Set implements [flag.Value].
func (l limits) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(part, "=")
		most, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return fmt.Errorf("%q is not name=number", part)
		}
		l[name] = most
	}
	return nil
}

// A work is what is measured: do is one round of it, through one door.
type work struct {
	name string
	what string
	do   func(ctx context.Context, d *door, round int) (time.Duration, error)
}

func (r *rules) wants(name string) bool {
	return r.only == "" || slices.Contains(strings.Split(r.only, ","), name)
}

// measure does a work through each door in turn, round by round, each round
// beginning at another door.
func (r *rules) measure(ctx context.Context, w work, doors []*door) ([]series, error) {
	took := make([]series, len(doors))
	for round := range r.rounds + 1 {
		for k := range doors {
			i := (round + k) % len(doors)
			t, err := w.do(ctx, doors[i], round)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", doors[i].name, w.name, err)
			}
			if round > 0 {
				took[i] = append(took[i], t)
			}
		}
	}
	return took, nil
}

// hold notes what is above its limit, if it has one.
func (r *rules) hold(name string, got float64) {
	if most, ok := r.most[name]; ok && got > most {
		r.broken = append(r.broken, fmt.Errorf("%s is %.2f, above %.2f", name, got, most))
	}
}

func show(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
	}
	return fmt.Sprintf("%.0f ms", ms(d))
}
