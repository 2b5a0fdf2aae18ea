package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"
	"time"
)

// show prints rows: as a JSON array, or as a table with the cells that cells
// makes of each.
func show[T any](w io.Writer, output string, header []string, rows []T, cells func(T) []string) error {
	if output == "json" {
		if rows == nil {
			rows = []T{}
		}
		return showJSON(w, rows)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(cells(r), "\t"))
	}
	return t.Flush()
}

// showJSON prints one value for programs.
func showJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// stream is show for rows that may be many: it prints each when it comes, as an
// element of a JSON array or as the line that line makes of it.
func stream[T any](w io.Writer, output, header string, rows iter.Seq2[T, error], line func(T) string) error {
	b := bufio.NewWriterSize(w, 64<<10)
	if output == "json" {
		return errors.Join(streamJSON(b, rows), b.Flush())
	}
	if header != "" {
		fmt.Fprintln(b, header)
	}
	for r, err := range rows {
		if err != nil {
			return errors.Join(err, b.Flush())
		}
		fmt.Fprintln(b, line(r))
	}
	return b.Flush()
}

// streamJSON prints an array, which is whole also where an error ends the rows.
func streamJSON[T any](b *bufio.Writer, rows iter.Seq2[T, error]) (failed error) {
	before, end := "[\n  ", "[]\n"
	for r, err := range rows {
		if failed = err; failed != nil {
			break
		}
		var text []byte
		if text, failed = json.MarshalIndent(r, "  ", "  "); failed != nil {
			break
		}
		b.WriteString(before)
		b.Write(text)
		before, end = ",\n  ", "\n]\n"
	}
	b.WriteString(end)
	return failed
}

// since is how long ago t was, for people.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return short(now.Sub(t)) + " ago"
}

// short is d in its two largest units.
func short(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// bytesize is n for people.
func bytesize(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB"} {
		if f /= 1000; f < 1000 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
