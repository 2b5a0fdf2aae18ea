package mounter

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/gantryd/gantry/services/kv"
)

// Forget drops the activations whose directories are gone: those that the records
// of a backup have, and that ended since. Who asked for one of them would be told
// of mounts that are not there. What has no record any more is undone by the next
// start.
func (s *Store) Forget(ctx context.Context) error {
	type ended struct {
		key []byte
		record
	}
	var all []ended
	if err := s.needs.Records.View(func(tx *kv.Tx) error {
		for key, value := range tx.Scan(kv.Key(Rows, ""), nil) {
			r, err := readRecord(key, value)
			if err != nil {
				return err
			}
			if _, err := os.Lstat(r.Dir); errors.Is(err, fs.ErrNotExist) && r.State == active {
				all = append(all, ended{slices.Clone(key), r})
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for part := range slices.Chunk(all, chunk) {
		if err := s.needs.Records.Release(ctx, func(tx *kv.Tx) error {
			var errs []error
			for _, e := range part {
				parts := kv.Parts(e.key)
				// One that somebody has made anew meanwhile has another id.
				if now, err := get(tx, parts[1], parts[2]); err == nil && now.ID == e.ID {
					errs = append(errs, s.abandon(tx, parts[1], parts[2], e.place))
				}
			}
			return errors.Join(errs...)
		}); err != nil {
			return err
		}
	}
	return nil
}
