package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/client"
)

func TestContentPutAndGet(t *testing.T) {
	d := newDesk(t)
	body := strings.Repeat("many bytes\n", 1<<18)
	in := d.file(body)
	want := digest.FromString(body)
	if got := want1[putRow](t, d.want("content", "put", "-o", "json", "-l", "a=1", in)); got != (putRow{Digest: want, Size: int64(len(body))}) {
		t.Errorf("put prints %+v", got)
	}
	if got := want1[putRow](t, d.want("content", "put", "-o", "json", "-l", "b=2", in)); got != (putRow{Digest: want, Size: int64(len(body)), Existed: true}) {
		t.Errorf("put once more prints %+v", got)
	}
	if info, err := d.blobs().Info(t.Context(), want); err != nil || len(info.Labels) != 2 {
		t.Errorf("its labels are %v, %v", info.Labels, err)
	}
	if out, errs, code := d.ctl("content", "put", in); out != want.String()+"\n" || errs != "gantryctl: "+in+" was here already\n" || code != 0 {
		t.Errorf("put = %d, %q, %q", code, out, errs)
	}
	if got := d.want("content", "put", "-q", in); got != want.String()+"\n" {
		t.Errorf("put -q prints %q", got)
	}
	if got := d.want("content", "get", want.Encoded()[:8]); got != body {
		t.Errorf("get prints %d bytes", len(got))
	}
	out := filepath.Join(t.TempDir(), "out")
	if got := d.want("content", "get", "-f", out, want.String()); got != "" {
		t.Errorf("get -f prints %q", got)
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != body {
		t.Errorf("get -f wrote %d bytes, %v", len(got), err)
	}
	d.in = "from a pipe"
	if got := d.want("content", "put", "-"); got != digest.FromString(d.in).String()+"\n" {
		t.Errorf("put - prints %q", got)
	}
	if got := d.want("content", "get", "-f", "-", digest.FromString(d.in).Encoded()); got != d.in {
		t.Errorf("get prints %q", got)
	}
}

func TestContentPutGoesOnWhereItWas(t *testing.T) {
	d := newDesk(t)
	body := strings.Repeat("many bytes\n", 1<<18)
	want := digest.FromString(body)
	d.begin("put-"+want.String(), body[:1<<20], int64(len(body)))
	out, errs, code := d.ctl("content", "put", d.file(body))
	if code != 0 || out != want.String()+"\n" || errs != "gantryctl: 1.0 MB of 2.9 MB were here already\n" {
		t.Errorf("put = %d, %q, %q", code, out, errs)
	}
	d.begin("mine", "ab", 0)
	d.in = "abc"
	if got := want1[putRow](t, d.want("content", "put", "--ref", "mine", "-o", "json", "-")); got.Resumed != 2 {
		t.Errorf("put --ref prints %+v", got)
	}
	d.begin("mine", "not the begin", 0)
	d.fail(1, "nothing of it is kept", "content", "put", "--ref", "mine", "-")
	if got := d.want("content", "ingests", "-o", "json"); got != "[]\n" {
		t.Errorf("ingests are left: %s", got)
	}
}

// TestContentPutThatIsInterrupted says what is left and how to go on.
func TestContentPutThatIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := client.PutResult{Kept: 34_200_000}
	if got, want := putError(ctx, "a.tar", r, errdefs.ErrUnavailable).Error(), "put a.tar: interrupted; 34.2 MB are kept, and the same command goes on from there"; got != want {
		t.Errorf("it says %q; want %q", got, want)
	}
	err := putError(t.Context(), "a.tar", r, errdefs.ErrResourceExhausted)
	if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), "goes on from there") {
		t.Errorf("it says %q", err)
	}
}
