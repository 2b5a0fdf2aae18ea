package activation

import (
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
)

const (
	mkdirPrefix = "X-containerd.mkdir."
	mkfsPrefix  = "X-containerd.mkfs."
)

// A Dir is a directory to be made.
type Dir struct {
	Path     string
	Mode     fs.FileMode // permissions
	UID, GID int
}

// TakeDirs applies [Mkdir]: it takes the directories that are to be there out of
// the options, each "X-containerd.mkdir.path=<path>[:<mode>[:<uid>:<gid>]]",
// with the mode in octal; without them 0700 and root's. One that is malformed is
// [errdefs.ErrInvalidArgument].
func TakeDirs(m mount.Mount) (mount.Mount, []Dir, error) {
	var dirs []Dir
	var options []string
	for _, o := range m.Options {
		rest, ok := strings.CutPrefix(o, mkdirPrefix)
		if !ok {
			options = append(options, o)
			continue
		}
		d, ok := parseDir(rest)
		if !ok {
			return mount.Mount{}, nil, fmt.Errorf("mkdir option %.300q: %w", o, errdefs.ErrInvalidArgument)
		}
		dirs = append(dirs, d)
	}
	m.Options = options
	return m, dirs, nil
}

func parseDir(option string) (Dir, bool) {
	value, ok := strings.CutPrefix(option, "path=")
	parts := strings.Split(value, ":")
	d := Dir{Path: parts[0], Mode: 0o700}
	if !ok || d.Path == "" {
		return Dir{}, false
	}
	if len(parts) > 1 {
		mode, err := strconv.ParseUint(parts[1], 8, 32)
		if err != nil || mode > uint64(fs.ModePerm) {
			return Dir{}, false
		}
		d.Mode = fs.FileMode(mode)
	}
	switch len(parts) {
	case 1, 2:
		return d, true
	case 4:
		uid, err1 := strconv.ParseUint(parts[2], 10, 32)
		gid, err2 := strconv.ParseUint(parts[3], 10, 32)
		d.UID, d.GID = int(uid), int(gid)
		return d, err1 == nil && err2 == nil && uid < math.MaxUint32 && gid < math.MaxUint32
	}
	return Dir{}, false
}

// An Image is a file with an empty file system in it, to be made.
type Image struct {
	FS   string // "ext4", …
	Size int64  // bytes
	UUID string
}

// TakeImage applies [Mkfs]: it takes out of the options what the source is to be
// if it is not there: "X-containerd.mkfs.size=<bytes>", with a unit of 1024 such
// as "16m" or without, and perhaps "fs" and "uuid". Without a size, and with one
// of these that is malformed, it is [errdefs.ErrInvalidArgument].
func TakeImage(m mount.Mount) (mount.Mount, Image, error) {
	i := Image{FS: "ext4"}
	var options []string
	for _, o := range m.Options {
		rest, ok := strings.CutPrefix(o, mkfsPrefix)
		if !ok {
			options = append(options, o)
			continue
		}
		key, value, _ := strings.Cut(rest, "=")
		ok = true
		switch key {
		case "fs":
			i.FS = value
		case "size":
			i.Size, ok = parseSize(value)
		case "uuid":
			i.UUID = value
			ok = isUUID(value)
		default:
			ok = false
		}
		if !ok {
			return mount.Mount{}, Image{}, fmt.Errorf("mkfs option %.300q: %w", o, errdefs.ErrInvalidArgument)
		}
	}
	if i.Size <= 0 {
		return mount.Mount{}, Image{}, fmt.Errorf("mkfs wants an option %ssize: %w", mkfsPrefix, errdefs.ErrInvalidArgument)
	}
	m.Options = options
	return m, i, nil
}

// parseSize reads bytes: "1048576", "1m", "1MB" and "1MiB" are the same.
func parseSize(s string) (int64, bool) {
	digits := strings.TrimRight(s, "bkmgtpiBKMGTPI")
	unit := strings.ToLower(s[len(digits):])
	n, err := strconv.ParseUint(digits, 10, 62)
	if err != nil {
		return 0, false
	}
	shift := 0
	if unit != "" && unit != "b" {
		letter := strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")
		if len(letter) != 1 || !strings.Contains("kmgtp", letter) {
			return 0, false
		}
		shift = 10 * (strings.Index("kmgtp", letter) + 1)
	}
	if n > math.MaxInt64>>shift {
		return 0, false
	}
	return int64(n << shift), true
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return false
		}
	}
	return true
}
