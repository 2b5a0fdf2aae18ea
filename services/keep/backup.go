package keep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/backup"
	"github.com/gantryd/gantry/services/kv"
)

const (
	// backupsKept is how many backups are kept: the last, and the one before.
	backupsKept = 2

	// backupAtStop is how long a clean stop may take for a backup.
	backupAtStop = 5 * time.Second

	backupPrefix, backupSuffix = "records-", ".backup"
	newPrefix                  = "new-" // of one that is not complete
)

func (k *Keeper) backups() string { return filepath.Join(k.o.Root, "backup") }

// Work writes a backup of the records from time to time, if they have changed,
// and when ctx ends. It is a work of the daemon's. An error is that records are
// lost: Open then makes them again.
func (k *Keeper) Work(ctx context.Context) error {
	timer := time.NewTicker(k.o.Every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), backupAtStop)
			defer cancel()
			if err := k.Save(last); err != nil {
				k.log.Warn("no backup was made at the end", "err", err)
			}
			return ctx.Err()
		case <-k.db.Gone():
			return fmt.Errorf("a restore left no database that can be opened: %w", errdefs.ErrInternal)
		case <-timer.C:
		}
		err := k.Save(ctx)
		if errdefs.IsDataLoss(err) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			k.log.Warn("no backup was made of the records", "err", err)
		}
	}
}

// Save makes a backup, unless nothing has changed since the last one.
func (k *Keeper) Save(ctx context.Context) error {
	k.backing.Lock()
	defer k.backing.Unlock()
	commits, err := k.db.Commits()
	if err != nil || commits == k.backedUp {
		return err
	}
	if err := k.o.Room(); err != nil {
		return err
	}
	if err := k.writeBackup(ctx); err != nil {
		return err
	}
	k.backedUp = commits
	return k.forgetBackups()
}

// writeBackup writes a backup, reads it again, and only then gives it its name.
func (k *Keeper) writeBackup(ctx context.Context) (err error) {
	if err := os.MkdirAll(k.backups(), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(k.backups(), newPrefix)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := k.db.Backup(ctx, f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	info, err := kv.CheckBackup(k.o.Records, f)
	if err != nil {
		return fmt.Errorf("what was just written: %w", err)
	}
	name, err := k.newName()
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(k.backups(), name)); err != nil {
		return err
	}
	k.log.Debug("the records are backed up", "records", info.Rows, "path", name)
	return k.o.Disk.SyncDir(k.backups())
}

// stamp is the time in the name of a backup.
const stamp = "20060102T150405.000000000Z"

// newName is the name of a backup that is newer than all others by its name, also
// where the clock was set back.
func (k *Keeper) newName() (string, error) {
	now := k.o.Now().UTC()
	names, err := k.Backups()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		middle := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), backupPrefix), backupSuffix)
		if last, err := time.Parse(stamp, middle); err == nil {
			if !now.After(last) {
				now = last.Add(1)
			}
			break
		}
	}
	return backupPrefix + now.Format(stamp) + backupSuffix, nil
}

// Backups returns the files of the backups, the newest first.
func (k *Keeper) Backups() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(k.backups(), backupPrefix+"*"+backupSuffix))
	slices.Sort(names)
	slices.Reverse(names)
	return names, err
}

// forgetBackups removes what is older than the last two, and what was not
// completed.
func (k *Keeper) forgetBackups() error {
	names, err := k.Backups()
	if err != nil {
		return err
	}
	old := names[min(len(names), backupsKept):]
	entries, err := os.ReadDir(k.backups())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) {
			old = append(old, filepath.Join(k.backups(), e.Name()))
		}
	}
	for _, name := range old {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// ErrIncomplete says that a restore has replaced the records, and could not
// complete them: the daemon has to be started again.
var ErrIncomplete = errors.New("the records are restored, and the daemon has to be started again to complete them")

// Restore puts the records of a backup in the place of those that are there,
// which are backed up before, and has complete complete them, which settles. It
// is called where nothing else changes records all at once.
func (k *Keeper) Restore(ctx context.Context, r io.Reader, complete func(context.Context) (backup.Report, error)) (backup.Report, error) {
	// What a restore before this one left undone stays to be done.
	due := k.Incomplete()
	if err := k.Doubt(); err != nil {
		return backup.Report{}, err
	}
	info, err := k.db.Replace(ctx, r)
	if err != nil {
		if due {
			return backup.Report{}, err
		}
		if e := k.Settle(); e != nil {
			k.log.Warn("the next start looks for objects without a record", "err", e)
		}
		return backup.Report{}, err
	}
	k.log.Warn("the records of a backup are in the place of those that were there", "records", info.Rows)
	report, err := complete(ctx)
	report.Records = info.Rows
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return report, err
}
