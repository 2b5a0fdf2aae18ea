package main

import (
	"cmp"
	"slices"
	"time"
)

// A series is how long each run of the same work took.
type series []time.Duration

// ratio is the median of the ratios run by run, which a drift of the machine's
// speed touches least.
func (s series) ratio(base series) float64 {
	var q []float64
	for i := range s {
		q = append(q, float64(s[i])/float64(base[i]))
	}
	return median(q)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median[T cmp.Ordered](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}
