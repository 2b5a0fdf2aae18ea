// Package gatenats carries questions to gates over NATS, both ends. A question
// is a request on the subject "gantry.v1.gate.<name>"; its body is a
// [gate.Request] as JSON, and the reply's is
//
//	{"pass": true}
//	{"pass": false, "reason": "no address is left"}
package gatenats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/ident"
)

// answerMax is how many bytes of an answer are read.
const answerMax = 64 << 10

// Prefix is what the subjects of gates begin with.
const Prefix = "gantry.v1.gate."

// Subject returns where a gate is asked. Of what has a meaning in a subject an
// identifier has only dots.
func Subject(name string) string { return Prefix + strings.ReplaceAll(name, ".", "%2E") }

// An answer is what a gate says. One that does not say whether to pass is none.
type answer struct {
	Pass   *bool  `json:"pass"`
	Reason string `json:"reason,omitempty"`
}

// NewAsker returns an asker of the gates that a connection reaches.
func NewAsker(nc *nats.Conn) gate.Asker { return asker{nc} }

type asker struct{ nc *nats.Conn }

// Ask implements gate.Asker.
func (a asker) Ask(ctx context.Context, name string, r gate.Request) error {
	if err := ident.Check(name); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	if err := r.Check(); err != nil {
		return err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("question for gate %s: %v: %w", name, err, errdefs.ErrInvalidArgument)
	}
	m, err := a.nc.RequestWithContext(ctx, Subject(name), body)
	switch {
	case err == nil:
		return understand(name, m.Data)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("gate %s: nobody answers: %w", name, errdefs.ErrNotFound)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("question for gate %s: %d bytes are too many: %w", name, len(body), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("gate %s: %v: %w", name, err, errdefs.ErrUnavailable)
}

// understand returns what an answer means. What is not understood is no "yes".
func understand(name string, body []byte) error {
	if len(body) > answerMax {
		return fmt.Errorf("gate %s answers with %d bytes, of which %d are too many: %w", name, len(body), len(body)-answerMax, errdefs.ErrInternal)
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil || a.Pass == nil {
		return fmt.Errorf("gate %s answers what nobody understands: %.64q: %w", name, body, errdefs.ErrInternal)
	}
	if !*a.Pass {
		return gate.Denied(name, a.Reason)
	}
	return nil
}
