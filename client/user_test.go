package client

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParseUser(t *testing.T) {
	for _, c := range []struct {
		s    string
		want User
		kind error
	}{
		{s: ""},
		{s: "root"},
		{s: "root:root"},
		{s: "0"},
		{s: "0:0"},
		{s: "0000"},
		{s: "1000", want: User{UID: 1000}},
		{s: "1000:1001", want: User{UID: 1000, GID: 1001}},
		{s: "2147483647", want: User{UID: 1<<31 - 1}},

		// Numbers that turned into root, or into names, elsewhere.
		{s: "2147483648", kind: errdefs.ErrInvalidArgument},
		{s: "4294967295", kind: errdefs.ErrInvalidArgument},
		{s: "4294967296", kind: errdefs.ErrInvalidArgument},
		{s: "9223372036854775807", kind: errdefs.ErrInvalidArgument},
		{s: "9223372036854775808", kind: errdefs.ErrInvalidArgument},
		{s: "18446744073709551616", kind: errdefs.ErrInvalidArgument},
		{s: "1:4294967296", kind: errdefs.ErrInvalidArgument},
		{s: strings.Repeat("9", 4096), kind: errdefs.ErrInvalidArgument},

		{s: "-1", kind: errdefs.ErrNotImplemented},
		{s: "+0", kind: errdefs.ErrNotImplemented},
		{s: " 0", kind: errdefs.ErrNotImplemented},
		{s: "0x0", kind: errdefs.ErrNotImplemented},
		{s: "٠", kind: errdefs.ErrNotImplemented}, // a digit, but not one of ours
		{s: "nginx", kind: errdefs.ErrNotImplemented},
		{s: "1000:staff", kind: errdefs.ErrNotImplemented},
		{s: ":", kind: errdefs.ErrInvalidArgument},
		{s: ":0", kind: errdefs.ErrInvalidArgument},
		{s: "0:", kind: errdefs.ErrInvalidArgument},
		{s: "0:0:0", kind: errdefs.ErrNotImplemented},
	} {
		got, err := ParseUser(c.s)
		if !errors.Is(err, c.kind) || got != c.want {
			t.Errorf("ParseUser(%q) = %v, %v; want %v, %v", c.s, got, err, c.want, c.kind)
		}
	}
}

// FuzzParseUser holds that digits are a number or an error, and never a name.
func FuzzParseUser(f *testing.F) {
	for _, s := range []string{"0", "1000:1000", "4294967296", "root", "a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUser(s)
		digits := s != "" && strings.Trim(s, "0123456789") == ""
		if digits && errors.Is(err, errdefs.ErrNotImplemented) {
			t.Errorf("ParseUser(%q) took a number for a name", s)
		}
		if digits && err == nil && u.UID == 0 && strings.Trim(s, "0") != "" {
			t.Errorf("ParseUser(%q) is root", s)
		}
		if err != nil && u != (User{}) {
			t.Errorf("ParseUser(%q) = %v with an error", s, u)
		}
	})
}
