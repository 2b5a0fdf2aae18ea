package contentd

import (
	"context"
	"fmt"
	"io"

	"github.com/gantryd/gantry/services/backup"
)

var _ backup.Keeper = (*Store)(nil)

// Backup implements [backup.Keeper].
func (s *Store) Backup(ctx context.Context, w io.Writer) error { return s.kv.Backup(ctx, w) }

// Restore implements [backup.Keeper]. What was there is backed up before. Blobs
// that the backup does not know, and whose file tells who has them, are kept.
// Ingests that the backup does not know are over.
func (s *Store) Restore(ctx context.Context, r io.Reader) (backup.Report, error) {
	if err := s.backUp(ctx); err != nil {
		s.log.Warn("what is about to be replaced could not be backed up", "err", err)
	}
	var report backup.Report
	replaced := false
	err := s.gate.Apart(ctx, func() error {
		// What a restore before this one left undone stays to be done.
		due := s.isRebuilding()
		if err := s.startRebuild(); err != nil {
			return err
		}
		info, err := s.kv.Replace(ctx, r)
		if err != nil && !due {
			return s.unlessReplaced(err)
		}
		if err != nil {
			return err
		}
		replaced = true
		s.log.Warn("the records of a backup are in the place of those that were there", "records", info.Rows)
		report, err = s.rebuild(ctx)
		report.Records = info.Rows
		return err
	})
	switch {
	case err == nil:
		return report, s.reconcileBlobs()
	case replaced:
		return report, fmt.Errorf("the records are restored, and contentd has to be started again to complete them: %w", err)
	}
	return report, err
}

// unlessReplaced ends a restore that has changed nothing.
func (s *Store) unlessReplaced(err error) error {
	if e := s.endRebuild(); e != nil {
		s.log.Warn("the next start looks for blobs without a record", "err", e)
	}
	return err
}
