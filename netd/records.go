package netd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/services/network"
)

// A state is how far an attachment has come.
type state string

const (
	attaching state = "attaching" // intended; any of it may be there
	attached  state = "attached"  // all of it is there
	detaching state = "detaching" // any of it may still be there
)

// A record is what is known of an attachment. All that is needed to undo it is
// in it: the network's file may be another by then.
type record struct {
	ID        string          `json:"id"` // what CNI knows it by; never used again
	Namespace string          `json:"namespace"`
	Container string          `json:"container"`
	Pid       uint32          `json:"pid"`   // of the task's first process
	Netns     nsID            `json:"netns"` // of the task; it cannot be another's while it is pinned
	Boot      string          `json:"boot"`  // in which all this is so
	Network   string          `json:"network"`
	List      json.RawMessage `json:"list"` // the network's configuration
	Ports     []network.Port  `json:"ports,omitempty"`
	State     state           `json:"state"`
	Addresses []string        `json:"addresses,omitempty"` // of an attached one
}

func (r *record) key() key { return key{r.Namespace, r.Container} }

// A key is a container.
type key struct{ namespace, container string }

func (k key) String() string { return k.namespace + "/" + k.container }

// disk is every way this package changes the file system, and no other. It is
// here so that a test can stop the machine between any two changes.
type disk interface {
	Mkdir(dir string) error
	Write(name string, data []byte) error // a new file, synced
	Rename(from, to string) error
	SyncDir(dir string) error
	RemoveAll(dir string) error
}

const (
	recordFile = "record.json"
	freshFile  = "record.new"
)

// dir returns the directory of an attachment. The record is in it, what libcni
// remembers, and the lock that every plugin which works on it holds.
func (s *Store) dir(id string) string { return filepath.Join(s.cfg.Root, "attachments", id) }

// save keeps a record durably.
func (s *Store) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record %s: %w", r.ID, err)
	}
	dir := s.dir(r.ID)
	if err := s.disk.Mkdir(dir); err != nil {
		return fmt.Errorf("record %s: %w", r.ID, err)
	}
	// The order is the promise: bytes, then name, then both directories.
	for _, step := range []func() error{
		func() error { return s.disk.Write(filepath.Join(dir, freshFile), b) },
		func() error { return s.disk.Rename(filepath.Join(dir, freshFile), filepath.Join(dir, recordFile)) },
		func() error { return s.disk.SyncDir(dir) },
		func() error { return s.disk.SyncDir(filepath.Dir(dir)) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("record %s: %w", r.ID, err)
		}
	}
	return nil
}

// forget removes a record durably, so that its address is not given back a
// second time after a crash, when somebody else has it.
func (s *Store) forget(r *record) error {
	dir := s.dir(r.ID)
	if err := s.disk.RemoveAll(dir); err != nil {
		return fmt.Errorf("record %s: %w", r.ID, err)
	}
	if err := s.disk.SyncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("record %s: %w", r.ID, err)
	}
	return nil
}

// load reads every record. A directory without one never had an attachment,
// and goes. A record that cannot be read stays for people to look at, and is
// reported: nothing is known of what it stands for.
func (s *Store) load() error {
	dir := filepath.Join(s.cfg.Root, "attachments")
	if err := s.disk.Mkdir(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := readRecord(filepath.Join(dir, e.Name(), recordFile))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := s.disk.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		case err != nil || r.ID != e.Name():
			s.log.Error("a record cannot be read; what it stands for stays", "dir", filepath.Join(dir, e.Name()), "err", err)
		default:
			if r.Boot != s.boot {
				r.State = detaching // the kernel's part ended with the boot
			}
			s.keep(r)
		}
	}
	return nil
}

func readRecord(name string) (*record, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// osDisk is the real one.
type osDisk struct{}

func (osDisk) Mkdir(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.Chmod(dir, 0o700)
	}
	return err
}

func (osDisk) Write(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (osDisk) RemoveAll(dir string) error { return os.RemoveAll(dir) }
