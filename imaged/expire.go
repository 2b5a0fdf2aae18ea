package imaged

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

const (
	// expireBatch is how many expired leases end in one transaction.
	expireBatch = 256

	// lookAgain is how long a work sleeps at most: the clock may be set.
	lookAgain = 10 * time.Minute
)

// An expiry is a row that says when a lease is over.
type expiry struct {
	key    []byte
	at     time.Time
	ns, id string
}

func expiryKey(at time.Time, ns, id string) []byte {
	return kv.Key("lease.expiry", inOrder(at), ns, id)
}

// inOrder spells a time so that bytes are in order of time, for every year that
// a label can say.
func inOrder(at time.Time) string {
	return fmt.Sprintf("%016x%08x", uint64(at.Unix())+1<<63, at.Nanosecond())
}

func toExpiry(key []byte) (expiry, error) {
	parts := kv.Parts(key)
	if len(parts) != 4 || len(parts[1]) != 24 {
		return expiry{}, fmt.Errorf("record %q: %w", key, errdefs.ErrDataLoss)
	}
	seconds, err := strconv.ParseUint(parts[1][:16], 16, 64)
	if err != nil {
		return expiry{}, fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
	}
	nanos, err := strconv.ParseUint(parts[1][16:], 16, 32)
	if err != nil {
		return expiry{}, fmt.Errorf("record %q: %v: %w", key, err, errdefs.ErrDataLoss)
	}
	return expiry{key: key, at: time.Unix(int64(seconds-1<<63), int64(nanos)), ns: parts[2], id: parts[3]}, nil
}

// Expire removes leases at their time, until ctx ends. It is a work of the
// daemon.
func (s *Store) Expire(ctx context.Context) error {
	for ctx.Err() == nil {
		next, err := s.expire(ctx)
		if errdefs.IsResourceExhausted(err) {
			s.log.Error("expired leases stay: the disk is full", "err", err)
			next, err = lookAgain, nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("expired leases: %w", err)
		}
		wait(ctx, s.expires, next)
	}
	return nil
}

// expire removes the leases whose time is over and returns how long it is until
// that of the next.
func (s *Store) expire(ctx context.Context) (time.Duration, error) {
	removed := 0
	defer func() {
		if removed > 0 {
			s.log.Info("removed expired leases", "count", removed)
		}
	}()
	for {
		n, next := 0, lookAgain
		if err := s.db.Release(ctx, func(tx *kv.Tx) (err error) {
			n, next, err = s.endExpired(tx)
			return err
		}); err != nil {
			return 0, err
		}
		removed += n
		if next > 0 {
			return next, nil
		}
	}
}

// endExpired ends at most a batch of leases, and returns how many and after
// which time there are more.
func (s *Store) endExpired(tx *kv.Tx) (n int, next time.Duration, err error) {
	now := s.now()
	for key := range tx.Scan(kv.Key("lease.expiry", ""), nil) {
		e, err := toExpiry(key)
		if err != nil {
			return n, 0, err
		}
		if d := e.at.Sub(now); d > 0 {
			return n, min(d, lookAgain), nil
		}
		if n == expireBatch {
			return n, 0, nil
		}
		r, err := getLease(tx, e.ns, e.id)
		switch {
		case err == nil:
			err = s.end(tx, e.ns, e.id, r)
		case errdefs.IsNotFound(err):
			// Not of our making, and no reason to serve nobody.
			err = tx.Delete(key)
		}
		if err != nil {
			return n, 0, err
		}
		n++
	}
	return n, lookAgain, nil
}
