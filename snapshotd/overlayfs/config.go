package overlayfs

import (
	"fmt"
	"slices"

	"github.com/gantryd/gantry/snapshotd/kernel"
)

// Config is what an operator may choose. Nothing that changes how layers look on
// disk is there to choose: they are to be the same wherever they were made.
type Config struct {
	// Volatile has containers write to overlays that sync nothing: an fsync in
	// one returns at once. After a crash of the machine, a snapshot that was
	// mounted so is not mounted again. Commits are durable all the same.
	Volatile bool `toml:"volatile"`

	// Xino is whether files of different layers are told apart by inode numbers
	// beyond 32 bits: "on", "off", "auto", or empty for what the kernel takes.
	Xino string `toml:"xino"`

	// SlowChown lets clients copy an image and change the owner of each file,
	// where the kernel cannot show it with the ids of a container.
	SlowChown bool `toml:"slow_chown"`
}

// Check reports what is wrong with c.
func (c Config) Check() error {
	if !slices.Contains([]string{"", "on", "off", "auto"}, c.Xino) {
		return fmt.Errorf(`overlayfs.xino: %q is none of "on", "off", "auto" and ""`, c.Xino)
	}
	return nil
}

// options are those of every overlay.
func (c Config) options() []string {
	options := kernel.OverlayOptions()
	if c.Xino != "" {
		options = append(options, "xino="+c.Xino)
	}
	return options
}
