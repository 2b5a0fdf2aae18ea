package kernel

import (
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/services/detached"
	"github.com/gantryd/gantry/services/idmap"
)

// mapped makes an overlay whose layers below have the ids of a container.
func (o Overlay) mapped() (*os.File, error) {
	users, err := detached.Users(o.IDs)
	if err != nil {
		return nil, err
	}
	defer users.Close()
	lower := make([]string, len(o.Lower))
	for i, l := range o.Lower {
		lower[i] = filepath.Join(o.Dir, l)
	}
	options := o.Options
	if o.Upper != "" {
		options = append([]string{"upperdir=" + filepath.Join(o.Dir, o.Upper), "workdir=" + filepath.Join(o.Dir, o.Work)}, options...)
	}
	return detached.Overlay(lower, options, users)
}

// setIDs shows a mount that is attached nowhere with the ids of a container.
func setIDs(m *os.File, ids idmap.Map, recursive bool) error {
	if ids.IsZero() {
		return nil
	}
	users, err := detached.Users(ids)
	if err != nil {
		return err
	}
	defer users.Close()
	return detached.SetUsers(m, users, recursive)
}
