package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// A stopwatch is a progress whose time is told by the test.
type stopwatch struct {
	progress
	out   bytes.Buffer
	clock time.Time
}

func newStopwatch(width int) *stopwatch {
	s := &stopwatch{clock: time.Unix(1000, 0)}
	s.progress = progress{w: &s.out, what: "put a.tar", now: func() time.Time { return s.clock }}
	if width > 0 {
		s.width = func() int { return width }
	}
	return s
}

// after lets d pass and says where it is.
func (s *stopwatch) after(d time.Duration, done, total int64, notes ...string) {
	s.clock = s.clock.Add(d)
	s.at(done, total, notes...)
}

func TestProgressOnATerminalIsOneLine(t *testing.T) {
	s := newStopwatch(56)
	s.after(0, 10e6, 100e6)
	s.after(50*time.Millisecond, 20e6, 100e6)
	if s.out.Len() > 0 {
		t.Errorf("at once it says %q", &s.out)
	}
	s.after(50*time.Millisecond, 30e6, 100e6)
	s.after(900*time.Millisecond, 60e6, 100e6, "hello\x1b[2J")
	s.end()
	s.end()
	want := clearLine + "put a.tar: 30.0 MB of 100.0 MB, 30%, 200.0 MB/s" +
		clearLine + "put a.tar: 60.0 MB of 100.0 MB, 60%, 50.0 MB/s, hello\\u" +
		clearLine
	if got := s.out.String(); got != want {
		t.Errorf("it says %q; want %q", got, want)
	}
}

func TestProgressElsewhereIsALineNowAndThen(t *testing.T) {
	s := newStopwatch(0)
	for i := range 121 {
		s.after(100*time.Millisecond, int64(i)*1e6, 0)
	}
	s.after(time.Second, 250e6, 1000e6, "2 of 3 blobs")
	s.after(5*time.Second, 350e6, 1000e6, "2 of 3 blobs")
	s.end()
	want := `gantryctl: put a.tar: 50.0 MB, 10.0 MB/s
gantryctl: put a.tar: 100.0 MB, 10.0 MB/s
gantryctl: put a.tar: 350.0 MB of 1.0 GB, 35%, 19.4 MB/s, 33s left, 2 of 3 blobs
`
	if got := s.out.String(); got != want {
		t.Errorf("it says %q; want %q", got, want)
	}
}

func TestProgressThatDoesNotMove(t *testing.T) {
	s := newStopwatch(0)
	for range 3 {
		s.after(5*time.Second, 5, 5)
	}
	if got, want := s.out.String(), strings.Repeat("gantryctl: put a.tar: 5 B of 5 B, 100%\n", 2); got != want {
		t.Errorf("it says %q; want %q", got, want)
	}
}

func TestProgressIsForPeople(t *testing.T) {
	n := &node{output: "table", getenv: func(string) string { return "" }}
	c := &cobra.Command{}
	var out bytes.Buffer
	c.SetErr(&out)
	if p := n.progress(c, "put", false); p == nil || p.width != nil {
		t.Errorf("a buffer is a terminal: %+v", p)
	}
	quiet := n.progress(c, "put", true)
	n.output = "json"
	for _, p := range []*progress{quiet, n.progress(c, "put", false)} {
		if p != nil {
			t.Errorf("with --quiet or -o json: %+v", p)
		}
		p.at(1, 2)
		p.end()
	}
	if out.Len() > 0 {
		t.Errorf("it says %q", &out)
	}
}

func TestPercentIsWholeOnlyAtTheEnd(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		want        string
	}{{0, 0, "-"}, {5, 0, "-"}, {0, 3, "0%"}, {999, 1000, "99%"}, {1000, 1000, "100%"}, {1 << 61, 1 << 62, "50%"}} {
		if got := percent(c.done, c.total); got != c.want {
			t.Errorf("percent(%d, %d) = %s; want %s", c.done, c.total, got, c.want)
		}
	}
}
