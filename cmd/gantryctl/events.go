package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/event"
)

// An eventRow is a line of events.
type eventRow struct {
	Time      time.Time       `json:"time"`
	ID        string          `json:"id,omitempty"`
	Sequence  uint64          `json:"sequence,omitempty"`
	Cursor    string          `json:"cursor,omitempty"`
	Namespace string          `json:"namespace"`
	Topic     string          `json:"topic"`
	Subject   string          `json:"subject,omitempty"`
	Trace     string          `json:"traceparent,omitempty"`
	Type      string          `json:"type"`
	Payload   json.RawMessage `json:"payload,omitempty"`
	Raw       []byte          `json:"raw,omitempty"` // of a type that nobody here knows
}

// A gapRow is a line of events where some are missing.
type gapRow struct {
	Gap gapEnds `json:"gap"`
}

type gapEnds struct {
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

func eventsCommand(n *node) *cobra.Command {
	var w watch
	c := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens",
		Long: `Events prints what happens from now on, in every namespace unless --namespace is
given, until it is interrupted. With --since it prints what is kept of before and
ends, unless --follow is given too. Filters have the fields namespace, topic and
event.<field>.

--since takes how long ago (10m), a time (2026-11-21T10:00:00Z), or a cursor, as
of the field of that name, behind which it begins. Events that are no longer kept
are a gap, which is said on standard error.

Fields with -o json, one object a line: time, id (the same if it is told again),
sequence and cursor (its place on the bus), namespace, topic, subject (what it is
about), traceparent, type, payload (what the event says, as protobuf JSON), raw
(the same in base64, of a type that is not known). A gap is a line of its own:
gap (from, to: cursors).`,
		Example: `  gantryctl events
  gantryctl events --filter 'topic~=^/tasks/' -o json
  gantryctl events --since 1h --filter 'topic=="/tasks/exit",event.container_id==web'
  gantryctl events --since 1h --follow --rate`,
		Args:        cobra.NoArgs,
		Annotations: endless,
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if w.options, err = parseSince(w.since, time.Now()); err != nil {
				return usage(c, err)
			}
			if !c.Flags().Changed("follow") {
				w.follow = w.since == ""
			}
			if c.Flags().Changed("namespace") {
				w.only = n.namespace
			}
			return n.reaching(func(c *cobra.Command, _ []string) error { return n.watch(c, w) })(c, args)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&w.filters, "filter", nil, "only those that `MATCH`, as in topic==\"/tasks/exit\"; several are alternatives")
	f.StringVar(&w.since, "since", "", "begin with what is kept since `WHEN`: how long ago, a time, or a cursor")
	f.BoolVarP(&w.follow, "follow", "f", false, "go on with what happens; so it does without --since")
	f.BoolVar(&w.rate, "rate", false, "say on standard error how many events come, if it is a terminal")
	return c
}

// A watch is what events is asked for.
type watch struct {
	filters      []string
	since, only  string
	follow, rate bool
	options      event.SubscribeOptions // where it begins
}

// watch prints events until ctx ends, or until those that are kept are printed.
// It goes on when the bus has restarted.
func (n *node) watch(c *cobra.Command, w watch) error {
	p := &eventPrinter{out: c.OutOrStdout(), errs: c.ErrOrStderr(), output: n.output, dated: w.since != "", only: w.only}
	if width := n.columns(p.errs); w.rate && width != nil {
		p.rate = newRate(p.errs, width)
		defer p.rate.run()()
	}
	ctx := c.Context()
	var err error
	if w.follow {
		w.options.Filters = w.filters
		err = n.follow(ctx, w.options, p)
	} else {
		err = n.printKept(ctx, w, p)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow prints events until ctx ends.
func (n *node) follow(ctx context.Context, o event.SubscribeOptions, p *eventPrinter) error {
	events, err := n.begin(ctx, o, p)
	if err != nil {
		return err
	}
	for e, err := range events {
		switch {
		case errors.Is(err, errdefs.ErrOutOfRange):
			err = p.gap(err)
		case err == nil:
			err = p.event(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin is Follow of the client, but that what is no longer kept is said and
// passed over.
func (n *node) begin(ctx context.Context, o event.SubscribeOptions, p *eventPrinter) (iter.Seq2[event.Event, error], error) {
	for {
		events, err := n.client.Follow(ctx, o)
		var gap *event.Gap
		if !errors.As(err, &gap) {
			return events, err
		}
		if err := p.gap(err); err != nil {
			return nil, err
		}
		o.After, o.Since = &gap.To, time.Time{}
	}
}

// An eventPrinter prints events, and gaps between them.
type eventPrinter struct {
	out, errs io.Writer
	output    string
	dated     bool   // the time has a date
	only      string // namespace; empty is all
	rate      *rate  // or nil
}

func (p *eventPrinter) event(e event.Event) error {
	if p.only != "" && e.Namespace != p.only {
		return nil
	}
	p.rate.add()
	r := eventRow{
		Time: e.Time, ID: e.ID, Sequence: e.Sequence, Namespace: e.Namespace, Topic: e.Topic, Subject: e.Subject,
		Trace: e.Trace, Type: e.Type, Payload: e.JSON, Raw: e.Raw,
	}
	if e.Sequence > 0 {
		r.Cursor = event.Cursor{Epoch: e.Epoch, Sequence: e.Sequence}.String()
	}
	if p.output == "json" {
		return json.NewEncoder(p.out).Encode(r)
	}
	form := "15:04:05.000"
	if p.dated {
		form = "2006-01-02 15:04:05.000"
	}
	line := fmt.Sprintf("%s %s %-20s %s", r.Time.Local().Format(form), r.Namespace, r.Topic, r.said())
	_, err := fmt.Fprintln(p.out, printable(line))
	return err
}

// gap says that events are missing, and goes on.
func (p *eventPrinter) gap(err error) error {
	var ends gapEnds
	text := err.Error()
	if gap, ok := errors.AsType[*event.Gap](err); ok {
		ends = gapEnds{gap.From.String(), gap.To.String()}
		text = fmt.Sprintf("a gap: events behind %s are no longer kept, up to %s", ends.From, ends.To)
	}
	p.rate.clear()
	fmt.Fprintln(p.errs, "gantryctl: "+printable(text))
	if p.output == "json" {
		return json.NewEncoder(p.out).Encode(gapRow{ends})
	}
	return nil
}

// said is what an event says, for people: its plain fields. What is nested in
// it is left to programs.
func (r eventRow) said() string {
	if len(r.Payload) == 0 {
		return fmt.Sprintf("%s, %d bytes", r.Type, len(r.Raw))
	}
	d := json.NewDecoder(bytes.NewReader(r.Payload))
	var words []string
	for depth, key := 0, ""; ; {
		token, err := d.Token()
		if err != nil {
			return strings.Join(words, " ")
		}
		delim, nests := token.(json.Delim)
		switch {
		case nests && (delim == '{' || delim == '['):
			depth, key = depth+1, ""
		case nests:
			depth--
		case depth != 1:
		case key == "":
			key = fmt.Sprint(token)
		default:
			words, key = append(words, fmt.Sprintf("%s=%v", key, token)), ""
		}
	}
}
