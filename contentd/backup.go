package contentd

import (
	"context"
	"io"

	"github.com/gantryd/gantry/services/backup"
)

var _ backup.Keeper = (*Store)(nil)

// Backup implements [backup.Keeper].
func (s *Store) Backup(ctx context.Context, w io.Writer) error { return s.kv.Backup(ctx, w) }

// Restore implements [backup.Keeper]. What was there is backed up before. Blobs
// that the backup does not know, and whose file tells who has them, are kept.
// Ingests that the backup does not know are over.
func (s *Store) Restore(ctx context.Context, r io.Reader) (report backup.Report, err error) {
	if err := s.keeper.Save(ctx); err != nil {
		s.log.Warn("what is about to be replaced could not be backed up", "err", err)
	}
	defer s.ring() // Collect has waited
	if err := s.gate.Apart(ctx, func() error {
		report, err = s.keeper.Restore(ctx, r, s.rebuild)
		return err
	}); err != nil {
		return report, kind(err)
	}
	return report, s.reconcileBlobs()
}
