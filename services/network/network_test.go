package network

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPorts(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"8080:80", "8080:80/tcp"},
		{"53:53/udp,53:53/tcp", "53:53/tcp,53:53/udp"},
		{"443:443,80:80", "80:80/tcp,443:443/tcp"},
		{"127.0.0.1:80:80", "127.0.0.1:80:80/tcp"},
		{"0.0.0.0:80:80", "80:80/tcp"},
		{"[::1]:80:80", "[::1]:80:80/tcp"},
		{"127.0.0.1:80:80,127.0.0.2:80:81", "127.0.0.1:80:80/tcp,127.0.0.2:80:81/tcp"},
	} {
		ports, err := ParsePorts(c.in)
		if got := FormatPorts(ports); err != nil || got != c.want {
			t.Errorf("%q: got %q, %v, want %q", c.in, got, err, c.want)
		}
	}
}

func TestPortsThatAreNone(t *testing.T) {
	many := strings.Repeat("1:1,", PortsMax) + "1:1"
	for _, in := range []string{
		"80", ":80", "80:", "0:80", "80:0", "65536:80", "80:65536", "-1:80", "+1:80", "080:80", " 80:80", "80:80 ",
		"80:80/", "80:80/sctp", "80:80/TCP", "80:80/tcp/udp", "80-90:80", "a:80", "80:80,", ",", "80:80,80:81",
		"1.2.3:80:80", "::1:80:80", "[127.0.0.1]:80:80", "[::1:80:80", "[fe80::1%eth0]:80:80", "[::ffff:1.2.3.4]:80:80",
		"224.0.0.1:80:80", "[::]:80:80", "localhost:80:80", "80:80\n", "80:80,127.0.0.1:80:80", "8０:80", "1e1:80", "0x50:80", many,
	} {
		if ports, err := ParsePorts(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v, %v", in, ports, err)
		}
	}
}

func TestWanted(t *testing.T) {
	w, err := Wanted(map[string]string{LabelNetwork: "default", LabelPorts: "8080:80"})
	if err != nil || w.Network != "default" || len(w.Ports) != 1 {
		t.Errorf("got %+v, %v", w, err)
	}
	if w, err := Wanted(map[string]string{"other": "x"}); err != nil || w.Network != "" {
		t.Errorf("without: got %+v, %v", w, err)
	}
	for _, labels := range []map[string]string{
		{LabelPorts: "8080:80"},
		{LabelNetwork: "../etc"},
		{LabelNetwork: "a/b"},
		{LabelNetwork: "-x"},
		{LabelNetwork: "a;b"},
		{LabelNetwork: strings.Repeat("a", 77)},
		{LabelNetwork: "a\n"},
		{LabelNetwork: "a", LabelPorts: "x"},
	} {
		if w, err := Wanted(labels); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %+v, %v", labels, w, err)
		}
	}
}

func FuzzPorts(f *testing.F) {
	f.Add("8080:80/tcp,127.0.0.1:53:53/udp")
	f.Add("[::1]:1:2")
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := ParsePorts(s)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		again, err := ParsePorts(FormatPorts(ports))
		if err != nil || !slices.Equal(again, ports) {
			t.Errorf("%q: %v, and again %v, %v", s, ports, again, err)
		}
	})
}
