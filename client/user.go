package client

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// A User is whom a process runs as, in numbers.
type User struct {
	UID, GID uint32
}

// idMax is the largest user or group. The kernel's are unsigned, but many
// programs have taken them for signed, and a number that changes its sign has
// turned into root before.
const idMax = math.MaxInt32

// ParseUser reads "uid" or "uid:gid", as an image's config and an operator
// write it. An empty one, and one without a group, are root's.
//
// A part in digits is a number, whatever the image's passwd file says: one that
// is too large is [errdefs.ErrInvalidArgument] and not a name. Names other than
// "root" are [errdefs.ErrNotImplemented]: they would have to be looked up in a
// file that the image brings.
func ParseUser(s string) (User, error) {
	if s == "" {
		return User{}, nil
	}
	user, group, hasGroup := strings.Cut(s, ":")
	uid, err := parseID("user", user)
	if err != nil {
		return User{}, err
	}
	u := User{UID: uid}
	if hasGroup {
		if u.GID, err = parseID("group", group); err != nil {
			return User{}, err
		}
	}
	return u, nil
}

func parseID(what, s string) (uint32, error) {
	if s == "root" {
		return 0, nil
	}
	if s == "" {
		return 0, fmt.Errorf("%s is empty: %w", what, errdefs.ErrInvalidArgument)
	}
	if strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%s %q is a name, which is not looked up; give numbers as uid:gid: %w", what, s, errdefs.ErrNotImplemented)
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > idMax {
		return 0, fmt.Errorf("%s %s is larger than %d: %w", what, s, idMax, errdefs.ErrInvalidArgument)
	}
	return uint32(n), nil
}
