package snapshotd

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/gantryd/gantry/services/gated"
	"github.com/gantryd/gantry/services/kv"
)

// Append is not durable before the next sync: the bytes may be missing then, or
// be zeros.
func (d *powerDisk) Append(path string, b []byte) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before, err := os.ReadFile(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return err
	}
	d.undo = append(d.undo, func() error {
		if fresh {
			return d.Disk.RemoveFile(path)
		}
		return unlessGone(os.Truncate(path, int64(len(before))))
	})
	d.blank = append(d.blank, func() error {
		if _, err := os.Lstat(path); err != nil {
			return unlessGone(err) // removed since
		}
		return os.WriteFile(path, append(bytes.Clone(before), make([]byte, len(b))...), 0o600)
	})
	return d.Disk.Append(path, b)
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d *powerDisk) RemoveFile(path string) error {
	if err := d.change(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if before, err := os.ReadFile(path); err == nil {
		d.undo = append(d.undo, func() error { return os.WriteFile(path, before, 0o600) })
	}
	return d.Disk.RemoveFile(path)
}

// Touch, Remove and SyncDir are of those who keep the records.

func (d *powerDisk) Touch(path string) error {
	return errors.Join(d.change(), d.unlessCut(func() error { return d.Disk.Touch(path) }))
}

func (d *powerDisk) Remove(path string) error {
	return errors.Join(d.change(), d.unlessCut(func() error { return d.Disk.Remove(path) }))
}

func (d *powerDisk) SyncDir(path string) error {
	return errors.Join(d.change(), d.unlessCut(func() error { return d.Disk.SyncDir(path) }))
}

func (d *powerDisk) unlessCut(do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.instead == nil && d.changes >= d.cutAt {
		return nil
	}
	return do()
}

// behind are records whose changes count as the disk's do: the power fails before
// one, or after it, when nobody has been told.
func (d *powerDisk) behind(r gated.Records) gated.Records { return powerRecords{r, d} }

type powerRecords struct {
	gated.Records
	d *powerDisk
}

func (r powerRecords) Update(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return r.change(func() error { return r.Records.Update(ctx, fn) })
}

func (r powerRecords) Release(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return r.change(func() error { return r.Records.Release(ctx, fn) })
}

func (r powerRecords) change(do func() error) error {
	if err := r.d.change(); err != nil {
		return err
	}
	return errors.Join(do(), r.d.change())
}
