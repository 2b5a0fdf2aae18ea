// Package idmap is which ids of users and groups in a container are which of its
// host, as the labels of snapshots and the options of mounts say it.
package idmap

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// A Range is ids that follow each other, from Container on the ones of the
// container and from Host on those of the host.
type Range struct{ Container, Host, Size uint32 }

// A Map is the ids of a container. The zero Map says that they are the host's.
type Map struct{ UIDs, GIDs []Range }

const (
	rangesMax = 340            // what the kernel takes of each kind
	idsEnd    = 1<<32 - 1      // no id: the last one stands for none
	rootMax   = 1 << 16        // ids in a range with the host's root
	textMax   = rangesMax * 33 // bytes of so many ranges
)

// Parse reads ranges "<container>:<host>:<size>" with commas between them. Two
// empty texts are the zero Map.
//
// It is [errdefs.ErrInvalidArgument] unless both have ranges, of which none is
// empty, ends beyond the last id or shares an id with another, and the
// container's root is somebody on the host. A range with the host's root has at
// most 65536 ids: what is larger maps nobody to anybody, it is the host.
func Parse(uids, gids string) (Map, error) {
	if uids == "" && gids == "" {
		return Map{}, nil
	}
	var m Map
	var err error
	if m.UIDs, err = parse(uids); err != nil {
		return Map{}, fmt.Errorf("mapping of users %.300q: %v: %w", uids, err, errdefs.ErrInvalidArgument)
	}
	if m.GIDs, err = parse(gids); err != nil {
		return Map{}, fmt.Errorf("mapping of groups %.300q: %v: %w", gids, err, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

func parse(text string) ([]Range, error) {
	if text == "" {
		return nil, fmt.Errorf("there is one of the other kind")
	}
	if len(text) > textMax {
		return nil, fmt.Errorf("longer than %d bytes", textMax)
	}
	var all []Range
	for one := range strings.SplitSeq(text, ",") {
		r, err := parseRange(one)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	if len(all) > rangesMax {
		return nil, fmt.Errorf("more than %d ranges", rangesMax)
	}
	if err := apart(all, func(r Range) uint32 { return r.Host }); err != nil {
		return nil, fmt.Errorf("of the host: %w", err)
	}
	if err := apart(all, func(r Range) uint32 { return r.Container }); err != nil {
		return nil, fmt.Errorf("of the container: %w", err)
	}
	if !slices.ContainsFunc(all, func(r Range) bool { return r.Container == 0 }) {
		return nil, fmt.Errorf("the container's root is nobody")
	}
	return all, nil
}

func parseRange(text string) (Range, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return Range{}, fmt.Errorf("not <container>:<host>:<size>")
	}
	var n [3]uint32
	for i, p := range parts {
		u, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return Range{}, fmt.Errorf("not a number of 32 bits: %.20q", p)
		}
		n[i] = uint32(u)
	}
	r := Range{Container: n[0], Host: n[1], Size: n[2]}
	switch {
	case r.Size == 0:
		return Range{}, fmt.Errorf("a range of no ids")
	case r.Size > idsEnd-r.Container || r.Size > idsEnd-r.Host:
		return Range{}, fmt.Errorf("a range beyond the last id")
	case r.Host == 0 && r.Size > rootMax:
		return Range{}, fmt.Errorf("%d ids of the host from its root on", r.Size)
	}
	return r, nil
}

// apart finds two ranges that share an id, by what first returns of each.
func apart(all []Range, first func(Range) uint32) error {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b Range) int { return cmp.Compare(first(a), first(b)) })
	for i := 1; i < len(sorted); i++ {
		if before := sorted[i-1]; first(sorted[i])-first(before) < before.Size {
			return fmt.Errorf("id %d is in two ranges", first(sorted[i]))
		}
	}
	return nil
}

// IsZero tells whether the ids are the host's.
func (m Map) IsZero() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Root returns who the container's root is on the host.
func (m Map) Root() (uid, gid uint32) { return root(m.UIDs), root(m.GIDs) }

func root(all []Range) uint32 {
	for _, r := range all {
		if r.Container == 0 {
			return r.Host
		}
	}
	return 0
}

const (
	uidOption = "uidmap="
	gidOption = "gidmap="
)

// Options are the options of a mount with these ids.
func (m Map) Options() []string {
	if m.IsZero() {
		return nil
	}
	return []string{uidOption + text(m.UIDs), gidOption + text(m.GIDs)}
}

func text(all []Range) string {
	var b strings.Builder
	for i, r := range all {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d:%d:%d", r.Container, r.Host, r.Size)
	}
	return b.String()
}

// Take returns the ids that the options of a mount say, and the other options.
// Of an option that is there twice the last one counts.
func Take(options []string) (m Map, others []string, err error) {
	var uids, gids string
	for _, o := range options {
		if u, ok := strings.CutPrefix(o, uidOption); ok {
			uids = u
		} else if g, ok := strings.CutPrefix(o, gidOption); ok {
			gids = g
		} else {
			others = append(others, o)
		}
	}
	m, err = Parse(uids, gids)
	return m, others, err
}
