package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/unpack"
)

// A stopwatch is a progress whose time is told by the test, and its timers too.
type stopwatch struct {
	*progress
	out   bytes.Buffer
	clock time.Time
	ring  func() // of the last timer
}

func newStopwatch(width int) *stopwatch {
	s := &stopwatch{clock: time.Unix(1000, 0)}
	s.progress = &progress{w: &s.out, what: "put a.tar", now: func() time.Time { return s.clock }}
	s.progress.after = func(_ time.Duration, f func()) *time.Timer {
		s.ring = f
		return time.NewTimer(time.Hour)
	}
	if width > 0 {
		s.width = func() int { return width }
	}
	return s
}

// pass lets d pass and says where it is.
func (s *stopwatch) pass(d time.Duration, done, total int64, notes ...string) {
	s.clock = s.clock.Add(d)
	s.at(done, total, notes...)
}

func TestProgressOnATerminalIsOneLine(t *testing.T) {
	s := newStopwatch(56)
	s.pass(0, 10e6, 100e6)
	s.pass(50*time.Millisecond, 20e6, 100e6)
	if s.out.Len() > 0 {
		t.Errorf("at once it says %q", &s.out)
	}
	s.pass(50*time.Millisecond, 30e6, 100e6)
	s.pass(900*time.Millisecond, 60e6, 100e6, "hello\x1b[2J")
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
		s.pass(100*time.Millisecond, int64(i)*1e6, 0)
	}
	s.pass(time.Second, 250e6, 1000e6, "2 of 3 blobs")
	s.pass(5*time.Second, 350e6, 1000e6, "2 of 3 blobs")
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
		s.pass(5*time.Second, 5, 5)
	}
	if got, want := s.out.String(), strings.Repeat("gantryctl: put a.tar: 5 B of 5 B, 100%\n", 2); got != want {
		t.Errorf("it says %q; want %q", got, want)
	}
}

// TestProgressTellsWhatWasSaidLast holds that a stage in which nothing more is
// said is seen.
func TestProgressTellsWhatWasSaidLast(t *testing.T) {
	s := newStopwatch(60)
	follow := s.follow(0)
	follow(client.Progress{Stage: client.StageSend, Done: 5, Total: 5})
	follow(client.Progress{Stage: client.StageCommit, Done: 5, Total: 5})
	s.ring()
	s.ring() // late, after all was told
	follow(client.Progress{Stage: client.StageWait, Done: 5, Total: 5})
	s.end()
	s.ring() // late, after the end
	if got, want := s.out.String(), clearLine+"put a.tar: 5 B of 5 B, 100%, committing"+clearLine; got != want {
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

func TestLayersAreToldOfOneByOne(t *testing.T) {
	got := layerNotes([]unpack.Progress{
		{Phase: unpack.Existed}, {Phase: unpack.Committed}, {Phase: unpack.Extracting, Done: 41, Total: 100},
		{Phase: unpack.Extracting}, {Phase: unpack.Settled}, {},
	})
	if want := []string{"2 of 6 layers", "layer 3 41 %"}; !slices.Equal(got, want) || layerNotes(nil) != nil {
		t.Errorf("layers are told of as %q, want %q", got, want)
	}
}
