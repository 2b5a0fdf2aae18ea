package contentd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

const (
	// backupsKept is how many backups are kept: the last, and the one before.
	backupsKept = 2

	// backupAtStop is how long a clean stop may take for a backup.
	backupAtStop = 5 * time.Second

	backupPrefix, backupSuffix = "records-", ".backup"
)

func (s *Store) backups() string { return filepath.Join(s.cfg.Root, "backup") }

// KeepBackups writes a backup of the records from time to time, if they have
// changed, and when ctx ends. It is a work of the daemon's. An error is that
// records are lost: Open then makes them again.
func (s *Store) KeepBackups(ctx context.Context) error {
	timer := time.NewTicker(s.cfg.backupEvery())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), backupAtStop)
			defer cancel()
			if err := s.backUp(last); err != nil {
				s.log.Warn("no backup was made at the end", "err", err)
			}
			return ctx.Err()
		case <-s.kv.Gone():
			return fmt.Errorf("a restore left no database that can be opened: %w", errdefs.ErrInternal)
		case <-timer.C:
		}
		err := s.backUp(ctx)
		if errdefs.IsDataLoss(err) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("no backup was made of the records", "err", err)
		}
	}
}

// backUp makes a backup, unless nothing has changed since the last one.
func (s *Store) backUp(ctx context.Context) error {
	s.backing.Lock()
	defer s.backing.Unlock()
	commits, err := s.kv.Commits()
	if err != nil || commits == s.backedUp {
		return err
	}
	if err := s.room(0); err != nil {
		return err
	}
	if err := s.writeBackup(ctx); err != nil {
		return err
	}
	s.backedUp = commits
	return s.forgetBackups()
}

// writeBackup writes a backup, reads it again, and only then gives it its name.
func (s *Store) writeBackup(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.backups(), dirMode); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.backups(), "new-")
	if err != nil {
		return kind(err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := s.kv.Backup(ctx, f); err != nil {
		return kind(err)
	}
	if err := f.Sync(); err != nil {
		return kind(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	info, err := kv.CheckBackup(options(s.cfg, s.log), f)
	if err != nil {
		return fmt.Errorf("what was just written: %w", err)
	}
	name := backupPrefix + s.now().Format("20060102T150405.000000000Z") + backupSuffix
	if err := os.Rename(f.Name(), filepath.Join(s.backups(), name)); err != nil {
		return kind(err)
	}
	s.log.Debug("the records are backed up", "records", info.Rows, "path", name)
	return kind(s.disk.SyncDir(s.backups()))
}

// backupFiles returns the backups, the newest first.
func (s *Store) backupFiles() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(s.backups(), backupPrefix+"*"+backupSuffix))
	slices.Sort(names)
	slices.Reverse(names)
	return names, err
}

// forgetBackups removes what is older than the last two, and what was not
// completed.
func (s *Store) forgetBackups() error {
	names, err := s.backupFiles()
	if err != nil {
		return err
	}
	old := names[min(len(names), backupsKept):]
	entries, err := os.ReadDir(s.backups())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "new-") {
			old = append(old, filepath.Join(s.backups(), e.Name()))
		}
	}
	for _, name := range old {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
