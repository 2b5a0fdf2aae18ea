package kernel

import (
	"os"
	"path/filepath"

	"github.com/gantryd/gantry/services/detached"
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
