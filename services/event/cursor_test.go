package event_test

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/event"
)

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"0123456789abcdef/7", "a%2Fb+c/0", "/1", "a/18446744073709551615", "", "a", "a/", "a/-1", "a/1/2", "%zz/1", "a/0x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := event.ParseCursor(s)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("ParseCursor(%q): %v", s, err)
			}
			return
		}
		if again, err := event.ParseCursor(c.String()); err != nil || again != c {
			t.Errorf("ParseCursor(%q): %v, %v, want %v", c.String(), again, err, c)
		}
	})
}

func TestACursorIsReadAsItWasWritten(t *testing.T) {
	for _, c := range []event.Cursor{{}, {Epoch: "a/b %\r\né", Sequence: 1<<64 - 1}} {
		if got, err := event.ParseCursor(c.String()); err != nil || got != c {
			t.Errorf("ParseCursor(%q): %v, %v, want %v", c.String(), got, err, c)
		}
	}
}
