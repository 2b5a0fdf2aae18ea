package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/unpack"
)

// How often progress is told.
const (
	progressTerminal = 100 * time.Millisecond // on a terminal, where a line is rewritten
	progressLog      = 5 * time.Second        // elsewhere, where each is a line
)

// widthDefault is that of a terminal that does not say.
const widthDefault = 80

// A progress tells people how far something is that takes long. What ends soon
// tells nothing. A nil one is silent. It is used by one goroutine at a time.
type progress struct {
	w     io.Writer
	what  string
	width func() int // columns, or nil if w is no terminal
	now   func() time.Time
	after func(time.Duration, func()) *time.Timer

	// mu guards the fields below it, which the timer uses too.
	mu          sync.Mutex
	began, told time.Time   // when the stage began, and of the last line
	first       int64       // what was there when the stage began
	shown       bool        // there is a line to be cleared
	held        string      // the last line, if it came too soon to be told
	timer       *time.Timer // tells it, where nothing else comes; or nil
}

// progress tells on standard error how far what is. With -o json, and if quiet,
// it is silent. The caller calls end before anything else is printed.
func (n *node) progress(c *cobra.Command, what string, quiet bool) *progress {
	if quiet || n.output == "json" {
		return nil
	}
	p := &progress{w: c.ErrOrStderr(), what: what, now: time.Now, after: time.AfterFunc}
	p.width = n.columns(p.w)
	return p
}

// columns returns what tells the width of the terminal that w is, or nil if it
// is none on which a line can be rewritten.
func (n *node) columns(w io.Writer) func() int {
	f := terminal(w)
	if f == nil || n.getenv("TERM") == "dumb" {
		return nil
	}
	return func() int {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
		return widthDefault
	}
}

// terminal returns the terminal that stream is, or nil.
func terminal(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// at says that done bytes of total are done; a total of 0 is unknown. Notes are
// what else there is to say. It may be called as often as it is handy.
func (p *progress) at(done, total int64, notes ...string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if p.began.IsZero() {
		p.began, p.first = now, done
	}
	if p.told.IsZero() {
		p.told = now
	}
	p.held = printable(strings.Join(append([]string{p.what + ": " + p.amount(done, total, now)}, notes...), ", "))
	pause := progressLog
	if p.width != nil {
		pause = progressTerminal
	}
	switch wait := pause - now.Sub(p.told); {
	case wait <= 0:
		p.tellLocked()
	case p.timer == nil:
		// What is said last is told, however long nothing comes after it.
		p.timer = p.after(wait, p.tellHeld)
	}
}

func (p *progress) tellHeld() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer = nil; p.held != "" {
		p.tellLocked()
	}
}

func (p *progress) tellLocked() {
	p.told = p.now()
	if p.width == nil {
		fmt.Fprintln(p.w, "gantryctl: "+p.held)
	} else {
		// The last column stays free: some terminals go on to the next line.
		fmt.Fprint(p.w, clearLine+cut(p.held, p.width()-1))
		p.shown = true
	}
	p.held = ""
}

// clearLine goes to the line's begin and clears it.
const clearLine = "\r\x1b[K"

// follow tells of what package client does. A total that it does not know is
// the one that is given, 0 if nobody knows it.
func (p *progress) follow(total int64) func(client.Progress) {
	if p == nil {
		return nil
	}
	var stage client.Stage
	return func(c client.Progress) {
		if c.Stage != stage && c.Stage != client.StageWait {
			stage = c.Stage
			p.anew()
		}
		if c.Total == 0 {
			c.Total = total
		}
		p.at(c.Done, c.Total, append([]string{string(c.Stage)}, layerNotes(c.Layers)...)...)
	}
}

// layerNotes are how many layers are done, and how far each is that is being
// extracted.
func layerNotes(layers []unpack.Progress) (notes []string) {
	done := 0
	for i, l := range layers {
		switch {
		case l.Phase.Over():
			done++
		case l.Phase == unpack.Extracting && l.Total > 0:
			notes = append(notes, fmt.Sprintf("layer %d %d %%", i+1, 100*min(l.Done, l.Total)/l.Total))
		}
	}
	if len(layers) == 0 {
		return nil
	}
	return append([]string{fmt.Sprintf("%d of %d layers", done, len(layers))}, notes...)
}

// anew begins to count anew.
func (p *progress) anew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.began = time.Time{}
}

// end takes the line away, and says nothing until at is called again.
func (p *progress) end() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held = ""; p.timer != nil && p.timer.Stop() {
		p.timer = nil
	}
	if p.shown {
		fmt.Fprint(p.w, clearLine)
		p.shown = false
	}
}

// amount is how much is done, and how fast since it began: what was there
// before does not count.
func (p *progress) amount(done, total int64, now time.Time) string {
	s := bytesize(done)
	if total > 0 {
		s = fmt.Sprintf("%s of %s, %s", s, bytesize(total), percent(done, total))
	}
	if d := now.Sub(p.began).Seconds(); d > 0 && done > p.first {
		rate := float64(done-p.first) / d
		s += ", " + bytesize(int64(rate)) + "/s"
		if left := time.Duration(float64(total-done) / rate * float64(time.Second)); left >= time.Second {
			s += ", " + short(left) + " left"
		}
	}
	return s
}

// percent is done of total, and 100% only if that is all of it.
func percent(done, total int64) string {
	if total <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", int(float64(done)/float64(total)*100))
}

// cut is the first columns of s.
func cut(s string, columns int) string {
	if r := []rune(s); len(r) > columns {
		return string(r[:max(columns, 0)])
	}
	return s
}

// printable is s with what would move a terminal's cursor, or worse, spelled
// out: names and labels are others' words.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	return b.String()
}
