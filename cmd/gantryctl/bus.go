package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/suite"
)

func busCommand(n *node) *cobra.Command {
	c := &cobra.Command{
		Use: "bus", Short: "The bus that carries events", Args: cobra.NoArgs,
		Long: `Bus looks after the bus: what it keeps, who reads it, and what it has not been
told yet.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(busStatus(n))
	return c
}

// A busSheet is what bus status says.
type busSheet struct {
	Stream         busStream   `json:"stream"`
	Readers        []busReader `json:"readers"`
	Peers          []busPeer   `json:"peers"`
	Connections    int         `json:"connections"`
	ConnectionsMax int         `json:"connections_max"`
	Outboxes       []busOutbox `json:"outboxes"`
}

type busStream struct {
	Epoch    string     `json:"epoch"`
	First    uint64     `json:"first"`
	Last     uint64     `json:"last"`
	Kept     uint64     `json:"kept"`
	Bytes    int64      `json:"bytes"`
	BytesMax int64      `json:"bytes_max"`
	AgeMax   int64      `json:"age_max_seconds"`
	Oldest   *time.Time `json:"oldest,omitempty"`
}

type busReader struct {
	Plugin string    `json:"plugin"`
	Name   string    `json:"name"`
	Cursor string    `json:"cursor"`
	Lag    uint64    `json:"lag"`
	Gaps   uint64    `json:"gaps"`
	Seen   time.Time `json:"seen"`
}

type busPeer struct {
	Name          string `json:"name"`
	Connections   int    `json:"connections"`
	Subscriptions int    `json:"subscriptions"`
	Pending       int64  `json:"pending_bytes"`
}

type busOutbox struct {
	Daemon string     `json:"daemon"`
	Depth  int        `json:"depth"`
	Oldest *time.Time `json:"oldest,omitempty"`
	Away   *time.Time `json:"away,omitempty"`
	Error  string     `json:"error,omitempty"`
}

func busStatus(n *node) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what the bus keeps, who reads it, and what waits for it",
		Long: `Status shows the stream of events, the plugins that come back for what they have
missed and how far behind each is, who is connected, and the events that wait in
each daemon for the bus to take them. If the bus is away it shows these alone, and
exits with 1.

Fields with -o json, one object: stream (epoch, first, last, kept, bytes,
bytes_max, age_max_seconds, oldest), readers (plugin, name, cursor, lag, gaps,
seen), peers (name, connections, subscriptions, pending_bytes), connections,
connections_max, outboxes (daemon, depth, oldest, away: since when the bus takes
nothing, error).`,
		Example: `  gantryctl bus status
  gantryctl bus status -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			sheet := busSheet{Readers: []busReader{}, Peers: []busPeer{}, Outboxes: n.outboxes(c.Context())}
			st, err := n.busStatus(c.Context())
			if err == nil {
				sheet.fill(st)
			}
			if n.output == "json" {
				return errors.Join(err, showJSON(c.OutOrStdout(), sheet))
			}
			now := time.Now()
			if err == nil {
				sheet.printBus(c.OutOrStdout(), now)
			}
			return errors.Join(err, sheet.printOutboxes(c.OutOrStdout(), now))
		},
	}
}

// busTime is how long the bus has to say how it is.
const busTime = 5 * time.Second

// busStatus asks the bus itself.
func (n *node) busStatus(ctx context.Context) (event.Status, error) {
	o, err := n.operate(ctx, suite.Socket(n.sockets, suite.Eventbus))
	if err != nil {
		return event.Status{}, err
	}
	defer o.Close()
	short, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	st, err := o.bus.Status(short)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("eventbus does not answer within %v: %w", busTime, errdefs.ErrUnavailable)
	}
	return st, err
}

// outboxes asks every daemon that tells of what happens what waits there.
func (n *node) outboxes(ctx context.Context) []busOutbox {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	rows := make([]*busOutbox, len(suite.Daemons))
	var wg sync.WaitGroup
	for i, d := range suite.Daemons {
		wg.Go(func() {
			a, err := n.ask(ctx, suite.Socket(n.sockets, d.Name))
			switch {
			case err == nil && a.Outbox != nil:
				rows[i] = &busOutbox{Daemon: d.Name, Depth: a.Outbox.Depth, Oldest: when(a.Outbox.Oldest), Away: when(a.Outbox.Away)}
			case err != nil && d.Name != suite.Eventbus && d.Name != suite.Gatewayd:
				rows[i] = &busOutbox{Daemon: d.Name, Error: err.Error()}
			}
		})
	}
	wg.Wait()
	all := []busOutbox{}
	for _, r := range rows {
		if r != nil {
			all = append(all, *r)
		}
	}
	return all
}

// when is nil for a time that is none.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (s *busSheet) fill(st event.Status) {
	s.Stream = busStream{
		Epoch: st.Stream.Epoch, First: st.Stream.First, Last: st.Stream.Last, Kept: st.Stream.Kept(),
		Bytes: st.Stream.Bytes, BytesMax: st.Stream.BytesMax, AgeMax: int64(st.Stream.AgeMax.Seconds()), Oldest: when(st.Stream.Oldest),
	}
	s.Connections, s.ConnectionsMax = st.Connections, st.ConnectionsMax
	for _, r := range st.Readers {
		s.Readers = append(s.Readers, busReader{r.Plugin, r.Name, r.Cursor.String(), r.Lag, r.Gaps, r.Seen})
	}
	for _, p := range st.Peers {
		s.Peers = append(s.Peers, busPeer{p.Name, p.Connections, p.Subscriptions, p.Pending})
	}
}

func (s *busSheet) printBus(w io.Writer, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, format string, a ...any) { fmt.Fprintf(t, "%s:\t%s\n", name, fmt.Sprintf(format, a...)) }
	line("Stream", "%s", printable(s.Stream.Epoch))
	if s.Stream.Kept == 0 {
		line("Events", "none are kept; the next is %d", s.Stream.Last+1)
	} else {
		line("Events", "%d are kept, %d to %d", s.Stream.Kept, s.Stream.First, s.Stream.Last)
	}
	line("Size", "%s of %s", bytesize(s.Stream.Bytes), bytesize(s.Stream.BytesMax))
	if s.Stream.Oldest != nil {
		line("Oldest", "%s, of at most %s", since(*s.Stream.Oldest, now), short(time.Duration(s.Stream.AgeMax)*time.Second))
	}
	line("Connections", "%d of %d", s.Connections, s.ConnectionsMax)
	t.Flush()
	fmt.Fprintln(w)
	if len(s.Readers) > 0 {
		_ = show(w, "table", []string{"READER", "NAME", "LAG", "SEEN", "GAPS", "CURSOR"}, s.Readers, func(r busReader) []string {
			return []string{
				printable(r.Plugin), printable(r.Name), strconv.FormatUint(r.Lag, 10), since(r.Seen, now),
				strconv.FormatUint(r.Gaps, 10), printable(r.Cursor),
			}
		})
		fmt.Fprintln(w)
	}
	if len(s.Peers) > 0 {
		_ = show(w, "table", []string{"PEER", "CONNECTIONS", "SUBSCRIPTIONS", "WAITING"}, s.Peers, func(p busPeer) []string {
			return []string{printable(p.Name), strconv.Itoa(p.Connections), strconv.Itoa(p.Subscriptions), bytesize(p.Pending)}
		})
		fmt.Fprintln(w)
	}
}

func (s *busSheet) printOutboxes(w io.Writer, now time.Time) error {
	return show(w, "table", []string{"OUTBOX", "EVENTS", "OLDEST", "BUS"}, s.Outboxes, func(o busOutbox) []string {
		if o.Error != "" {
			return []string{o.Daemon, "-", "-", printable(o.Error)}
		}
		bus := "takes them"
		if o.Away != nil {
			bus = "away for " + short(now.Sub(*o.Away))
		}
		oldest := "-"
		if o.Oldest != nil {
			oldest = since(*o.Oldest, now)
		}
		return []string{o.Daemon, strconv.Itoa(o.Depth), oldest, bus}
	})
}
