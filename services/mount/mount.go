// Package mount describes mounts. A description is data: who mounts, where and
// when is decided by whoever receives it.
package mount

// A Mount is one file system to be attached, in the terms of mount(8).
type Mount struct {
	Type    string   `json:"type"`              // "overlay", "bind", …
	Source  string   `json:"source"`            // device, directory, or a word such as "overlay"
	Target  string   `json:"target,omitempty"`  // path below the place the whole set is mounted at; empty is that place
	Options []string `json:"options,omitempty"` // fstab's words: "ro", "lowerdir=…"
}
