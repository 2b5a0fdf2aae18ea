package fsck

import (
	"context"
	"time"
)

// A Pace keeps a check to a number of bytes a second.
type Pace struct {
	rate  int64 // 0 is any
	began time.Time
	done  int64
}

// NewPace returns one that begins now.
func NewPace(rate int64) *Pace { return &Pace{rate: rate, began: time.Now()} }

// Keep waits until n more bytes are within the pace. It calls goOn meanwhile, as
// often as every says, and once at the end; an error of that ends it.
func (p *Pace) Keep(ctx context.Context, n int64, every time.Duration, goOn func() error) error {
	p.done += n
	for p.rate > 0 {
		wait := time.Duration(float64(p.done)/float64(p.rate)*float64(time.Second)) - time.Since(p.began)
		if wait <= 0 {
			break
		}
		timer := time.NewTimer(min(wait, every))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		if err := goOn(); err != nil {
			return err
		}
	}
	return goOn()
}
