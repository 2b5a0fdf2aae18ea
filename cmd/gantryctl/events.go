package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/event"
)

// An eventRow is a line of events.
type eventRow struct {
	Time      time.Time       `json:"time"`
	Namespace string          `json:"namespace"`
	Topic     string          `json:"topic"`
	Subject   string          `json:"subject,omitempty"`
	Type      string          `json:"type"`
	Payload   json.RawMessage `json:"payload,omitempty"`
	Raw       []byte          `json:"raw,omitempty"` // of a type that nobody here knows
}

func eventsCommand(n *node) *cobra.Command {
	var filters []string
	c := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens",
		Long: `Events prints what happens from now on, in every namespace unless --namespace is
given, until it is interrupted. Filters have the fields namespace, topic and
event.<field>.

Fields with -o json, one object a line: time, namespace, topic, subject (what it
is about), type, payload (what the event says, as protobuf JSON), raw (the same
in base64, of a type that is not known).`,
		Example: `  gantryctl events
  gantryctl events --filter 'topic~=^/tasks/' -o json`,
		Args:        cobra.NoArgs,
		Annotations: endless,
		RunE: n.reaching(func(c *cobra.Command, _ []string) error {
			var only string
			if c.Flags().Changed("namespace") {
				only = n.namespace
			}
			return n.follow(c, filters, only)
		}),
	}
	c.Flags().StringArrayVar(&filters, "filter", nil, "only those that `MATCH`, as in topic==/tasks/exit; several are alternatives")
	return c
}

// follow prints events until ctx ends. It goes on when the bus has restarted.
func (n *node) follow(c *cobra.Command, filters []string, only string) error {
	events, err := n.client.Follow(c.Context(), event.SubscribeOptions{Filters: filters})
	if err != nil {
		return err
	}
	for e, err := range events {
		switch {
		case c.Context().Err() != nil:
			return nil
		case errors.Is(err, errdefs.ErrOutOfRange):
			fmt.Fprintln(c.ErrOrStderr(), "gantryctl:", err)
		case err != nil:
			return err
		case only == "" || e.Namespace == only:
			if err := printEvent(c.OutOrStdout(), n.output, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func printEvent(out io.Writer, output string, e event.Event) error {
	r := eventRow{Time: e.Time, Namespace: e.Namespace, Topic: e.Topic, Subject: e.Subject, Type: e.Type, Payload: e.JSON, Raw: e.Raw}
	if output == "json" {
		return json.NewEncoder(out).Encode(r)
	}
	_, err := fmt.Fprintf(out, "%s %s %-20s %s\n", r.Time.Local().Format("15:04:05.000"), r.Namespace, r.Topic, r.said())
	return err
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
