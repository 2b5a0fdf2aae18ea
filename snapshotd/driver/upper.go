package driver

import "github.com/gantryd/gantry/services/snapshot"

// MakeUpper makes the directories that overlayfs writes to for a snapshot: fs/,
// and for an active one work/. Where there is a parent, fs/ belongs to whom owner
// says, in the host's ids; else to the daemon's user.
func (d Dirs) MakeUpper(s Snapshot, owner func(Snapshot) (uid, gid uint32, err error)) error {
	if err := d.Disk.Mkdir(d.Path(s.ID), 0o700); err != nil {
		return err
	}
	upper := d.Path(s.ID, "fs")
	if err := d.Disk.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if len(s.Parents) > 0 {
		uid, gid, err := owner(s)
		if err != nil {
			return err
		}
		if err := d.Disk.Chown(upper, int(uid), int(gid)); err != nil {
			return err
		}
	}
	if s.Kind != snapshot.Active {
		return nil
	}
	return d.Disk.Mkdir(d.Path(s.ID, "work"), 0o711)
}
