package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/keep"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/snapshotd/driver"
)

var _ backup.Keeper = (*Store)(nil)

// keeping is how the records are kept.
func keeping(cfg Config, d driver.Disk, log *slog.Logger) keep.Options {
	return keep.Options{
		Root:    cfg.Root,
		Records: kv.Options{Owner: suite.Snapshotd, Schema: schema, Log: log},
		Disk:    d,
		Now:     func() time.Time { return time.Now().UTC() },
		Every:   time.Duration(cfg.BackupMinutes) * time.Minute,
		Objects: func() (bool, error) { return hasTrees(cfg.Root) },
		Room:    func() error { return room(cfg.Root, cfg.FreeMinMiB<<20) },
	}
}

// hasTrees says whether there is anything below root that a snapshotter made
// for a snapshot.
func hasTrees(root string) (bool, error) {
	for name := range openers {
		for _, dir := range []string{notesDir, snapshotsDir} {
			entries, err := os.ReadDir(filepath.Join(root, name, dir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, err
			}
			if len(entries) > 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// room is [errdefs.ErrResourceExhausted] where less than so many bytes are free.
func room(root string, least int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < least {
		return fmt.Errorf("disk of %s is nearly full: %d bytes are free, want %d: %w", root, free, least, errdefs.ErrResourceExhausted)
	}
	return nil
}

// KeepBackups writes backups of the records. It is a work of the daemon's.
func (s *Store) KeepBackups(ctx context.Context) error { return s.keeper.Work(ctx) }

// Backup implements [backup.Keeper].
func (s *Store) Backup(ctx context.Context, w io.Writer) error { return s.kv.Backup(ctx, w) }

// Restore implements [backup.Keeper]. What was there is backed up before.
// Snapshots that the backup does not know, and whose notes tell of them, are
// kept.
func (s *Store) Restore(ctx context.Context, r io.Reader) (report backup.Report, err error) {
	if err := s.keeper.Save(ctx); err != nil {
		s.log.Warn("what is about to be replaced could not be backed up", "err", err)
	}
	defer s.ring() // Collect has waited
	giveBack, err := s.trashTurn(ctx)
	if err != nil {
		return report, err
	}
	defer giveBack()
	return report, s.gate.Apart(ctx, func() error {
		report, err = s.keeper.Restore(ctx, r, s.rebuild)
		if err == nil {
			err = s.mounter.Forget(ctx)
		}
		return err
	})
}
