package main

import (
	"context"
	"io"
	"iter"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
)

// A meter says what it is told to.
type meter content.Usage

func (m meter) Usage(context.Context) (content.Usage, error) { return content.Usage(m), nil }

// A checker finds one blob to be corrupt, or fails.
type checker struct {
	bad   digest.Digest
	err   error
	asked []string
}

func (c *checker) Check(_ context.Context, o fsck.Options) iter.Seq2[fsck.Item, error] {
	c.asked = append(c.asked, o.Only...)
	return func(yield func(fsck.Item, error) bool) {
		if c.err != nil {
			yield(fsck.Item{}, c.err)
			return
		}
		note := &fsck.Finding{Severity: fsck.Note, What: "label", ID: o.Only[0], Why: "nobody can have noticed"}
		loss := &fsck.Finding{Severity: fsck.Loss, What: "corrupt", ID: c.bad.String(), Why: "its bytes hash to something else"}
		_ = yield(fsck.Item{Finding: note}, nil) && yield(fsck.Item{Finding: loss}, nil) && yield(fsck.Item{}, nil)
	}
}

func TestContentDu(t *testing.T) {
	d := newDesk(t)
	d.fail(1, "start it with: gantryctl", "--address", t.TempDir()+"/none.sock", "content", "du")
	d.own = &operator{Closer: io.NopCloser(nil), meter: meter{
		Namespaces: []content.NamespaceUsage{
			{Namespace: "default", Blobs: 14, Bytes: 3_100_000_000, Shared: 873_200},
			{Namespace: "k8s.io", Blobs: 1, Bytes: 873_200, Shared: 873_200},
		},
		Blobs:      content.Amount{Count: 14, Bytes: 3_100_000_000},
		Ingests:    content.Amount{Count: 2, Bytes: 282_100_000},
		Trash:      content.Amount{Count: 1, Bytes: 404},
		Quarantine: content.Amount{},
		Free:       120_000_000_000,
	}}
	golden(t, "content-du.txt", d.want("content", "du"))
	golden(t, "content-du.json", d.want("content", "du", "-o", "json"))
	help := d.want("content", "du", "--help")
	for _, field := range []string{"namespaces", "namespace", "blobs", "bytes", "shared_bytes", "ingests", "trash", "quarantine", "count", "free_bytes"} {
		if !strings.Contains(d.want("content", "du", "-o", "json"), `"`+field+`"`) || !strings.Contains(help, field) {
			t.Errorf("field %s is not printed, or not in the help", field)
		}
	}
}

// TestContentVerifyAsksContentd holds that contentd reads the blobs if it is
// reached, and gantryctl if not.
func TestContentVerifyAsksContentd(t *testing.T) {
	d := newDesk(t)
	good, bad := d.put("good", nil), d.put("bad bytes", nil)
	c := &checker{bad: bad}
	d.own = &operator{Closer: io.NopCloser(nil), checker: c}
	out, errs, code := d.ctl("content", "verify", "--all")
	if want := bad.String() + "  corrupt  its bytes hash to something else\n"; code != 1 || out != want || !strings.Contains(errs, "1 of 2") {
		t.Errorf("verify = %d, %q, %q", code, out, errs)
	}
	if len(c.asked) != 2 {
		t.Errorf("contentd was asked about %v", c.asked)
	}
	if got := d.want("--address", "/elsewhere/gantry.sock", "content", "verify", "--all"); len(c.asked) != 2 {
		t.Errorf("another suite's contentd was asked: %s", got)
	}
	for _, err := range []error{errdefs.ErrUnavailable, errdefs.ErrNotFound, errdefs.ErrPermissionDenied, errdefs.ErrNotImplemented} {
		c.err = err
		if got := d.want("content", "verify", good.String(), bad.String()); got != "ok: blobs: 2, bytes: 13 B\n" {
			t.Errorf("where contentd says %v, verify prints %q", err, got)
		}
	}
}
