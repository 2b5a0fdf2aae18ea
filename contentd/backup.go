package contentd

import (
	"context"
	"fmt"
	"io"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/kv"
)

var _ backup.Keeper = (*Store)(nil)

// Backup implements [backup.Keeper].
func (s *Store) Backup(ctx context.Context, w io.Writer) error { return s.kv.Backup(ctx, w) }

// Restore implements [backup.Keeper]. The ingests that are written meanwhile
// are over, unless the backup knows them too.
func (s *Store) Restore(ctx context.Context, r io.Reader) (backup.Report, error) {
	var info kv.BackupInfo
	if err := s.gate.Apart(ctx, func() (err error) {
		info, err = s.kv.Replace(ctx, r)
		return err
	}); err != nil {
		return backup.Report{}, err
	}
	s.log.Warn("the records of a backup are in the place of those that were there", "records", info.Rows)
	report := backup.Report{Records: info.Rows}
	if err := s.reconcileBlobs(); err != nil {
		return report, fmt.Errorf("the records are restored, but: %w", err)
	}
	return report, nil
}
