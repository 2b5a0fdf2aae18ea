package eventbus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A mark is what the stream is known to have. The server does not say when it
// has cut off what it could not read, and gives the sequences that were there to
// other events; the mark is what shows it.
type mark struct {
	Epoch    string `json:"epoch"`
	Sequence uint64 `json:"sequence"` // an event that was acknowledged; later ones may have been

	// Block is the stream's last file, and Size how long it is, from when the
	// stream is closed, or found, until what the server made of it has been
	// looked at.
	Block string `json:"block,omitempty"`
	Size  int64  `json:"size,omitempty"`
}

const markName = "mark"

// loadMark reads the mark. Without one nothing is known; one that is damaged is
// removed.
func loadMark(root string) (m mark, err error) {
	name := filepath.Join(root, markName)
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	switch {
	case err == nil:
		return m, nil
	case errors.Is(err, fs.ErrNotExist):
		return mark{}, nil
	}
	return mark{}, errors.Join(fmt.Errorf("mark: %w", err), os.RemoveAll(name))
}

// save writes the mark durably.
func (m mark) save(root string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	name := filepath.Join(root, markName)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(root)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
