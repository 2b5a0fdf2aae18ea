package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task/tasktest"
)

// demoNode has the demo image.
func demoNode(t *testing.T, programs tasktest.Programs) *client.Client {
	t.Helper()
	c := clienttest.New(t, programs)
	if _, err := importFrom(t, c, clienttest.Demo(t), client.ImportOptions{OwnNames: true}); err != nil {
		t.Fatal(err)
	}
	return c
}

func create(t *testing.T, c *client.Client, args ...string) *client.Container {
	t.Helper()
	k, err := c.In(scope.Name).Create(t.Context(), client.CreateOptions{Image: "demo:latest", Program: client.Program{Args: args}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func start(t *testing.T, k *client.Container, s client.Streams) *client.Process {
	t.Helper()
	p, err := k.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func waitFor(t *testing.T, p *client.Process, want uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	exit, err := p.Wait(ctx)
	if err != nil || exit.Status != want {
		t.Fatalf("Wait = %+v, %v; want status %d", exit, err, want)
	}
}

func TestRunFromImageToNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c := demoNode(t, nil)
	before := everything(t, c)
	k := create(t, c, "echo", "hello", "there")
	if !strings.HasPrefix(k.ID, "demo-") {
		t.Errorf("the name made up is %q", k.ID)
	}
	var out bytes.Buffer
	p := start(t, k, client.Streams{Out: &out, Err: io.Discard})
	waitFor(t, p, 0)
	if got := out.String(); got != "hello there\n" {
		t.Errorf("it wrote %q", got)
	}
	if err := p.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := k.Delete(t.Context(), false); err != nil {
		t.Error(err)
	}
	after := everything(t, c)
	for name := range after {
		if strings.HasPrefix(name, "snapshot sha256:") {
			delete(after, name) // the image's layers
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after the run (-before +after):\n%s", diff)
	}
	if left, err := os.ReadDir(c.IODir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

func TestExitStatusIsTheProgramsOwn(t *testing.T) {
	c := demoNode(t, nil)
	waitFor(t, start(t, create(t, c, "exit", "42"), client.Streams{}), 42)
}

func TestOutputIsWhole(t *testing.T) {
	line := strings.Repeat("x", 99) + "\n"
	c := demoNode(t, tasktest.Programs{"much": func(_ context.Context, p tasktest.Running) uint32 {
		for range 5000 {
			io.WriteString(p.Stdout, line)
		}
		io.WriteString(p.Stderr, "done")
		return 3
	}})
	var out, errs bytes.Buffer
	waitFor(t, start(t, create(t, c, "much"), client.Streams{Out: &out, Err: &errs}), 3)
	if out.Len() != 5000*len(line) || errs.String() != "done" {
		t.Errorf("%d bytes of output and %q of errors; want %d and done", out.Len(), errs.String(), 5000*len(line))
	}
}

func TestInputReachesTheProgramAndEnds(t *testing.T) {
	c := demoNode(t, tasktest.Programs{"upper": func(_ context.Context, p tasktest.Running) uint32 {
		b := make([]byte, 5)
		if _, err := io.ReadFull(p.Stdin, b); err != nil {
			return 1
		}
		io.WriteString(p.Stdout, strings.ToUpper(string(b)))
		if _, err := p.Stdin.Read(b); err != io.EOF {
			return 2
		}
		return 0
	}})
	in, feed := io.Pipe()
	heard, out := io.Pipe()
	p := start(t, create(t, c, "upper"), client.Streams{In: in, Out: out})
	if _, err := feed.Write([]byte("quiet")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(heard, b); err != nil || string(b) != "QUIET" {
		t.Errorf("it wrote %q, %v", b, err)
	}
	feed.Close()
	waitFor(t, p, 0)
}

// TestInputThatEndsAtOnceIsNotLost holds what a FIFO makes easy to get wrong:
// the input has ended before the other side has opened it.
func TestInputThatEndsAtOnceIsNotLost(t *testing.T) {
	c := demoNode(t, nil)
	for range 20 {
		var out bytes.Buffer
		waitFor(t, start(t, create(t, c, "cat"), client.Streams{In: strings.NewReader("typed"), Out: &out}), 0)
		if out.String() != "typed" {
			t.Errorf("it wrote %q", out.String())
		}
	}
}

func TestStartOfNoProgramLeavesNoTask(t *testing.T) {
	c := demoNode(t, nil)
	k := create(t, c, "nothing")
	if _, err := k.Start(t.Context(), client.Streams{Out: io.Discard}); err == nil {
		t.Fatal("a program that does not exist was started")
	}
	if tasks, err := c.Tasks.In(scope).List(t.Context()); err != nil || len(tasks) > 0 {
		t.Errorf("tasks %v, %v; want none", tasks, err)
	}
	if left, err := os.ReadDir(c.IODir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	if err := k.Delete(t.Context(), false); err != nil {
		t.Error(err)
	}
}

func TestExecRunsBesides(t *testing.T) {
	c := demoNode(t, nil)
	k := create(t, c, "sleep")
	start(t, k, client.Streams{})
	again, err := c.In(scope.Name).Container(t.Context(), k.ID)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := again.Exec(t.Context(), client.Program{Args: []string{"echo", "inside"}}, client.Streams{Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, p, 0)
	if err := p.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if out.String() != "inside\n" {
		t.Errorf("it wrote %q", out.String())
	}
	if _, err := again.Exec(t.Context(), client.Program{Args: []string{"nothing"}}, client.Streams{}); err == nil {
		t.Error("a program that does not exist was started")
	}
	if _, err := again.Exec(t.Context(), client.Program{Args: []string{"true"}, Cwd: "/proc/self/fd/3"}, client.Streams{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a working directory in /proc: %v", err)
	}
}

func TestStop(t *testing.T) {
	c := demoNode(t, nil)
	for _, test := range []struct {
		program  string
		patience time.Duration
		want     uint32
	}{
		{"sleep", 10 * time.Second, 128 + 15},
		{"ignore", 10 * time.Millisecond, 128 + 9},
	} {
		k := create(t, c, test.program)
		start(t, k, client.Streams{})
		for range 2 { // the second time it has ended already
			exit, err := k.Stop(t.Context(), test.patience)
			if err != nil || exit.Status != test.want {
				t.Errorf("stop of %s = %+v, %v; want status %d", test.program, exit, err, test.want)
			}
		}
	}
}

func TestDeleteOfWhatRuns(t *testing.T) {
	c := demoNode(t, nil)
	k := create(t, c, "ignore")
	start(t, k, client.Streams{})
	if err := k.Delete(t.Context(), false); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Delete of what runs: %v; want a failed precondition", err)
	}
	if _, err := c.In(scope.Name).Container(t.Context(), k.ID); err != nil {
		t.Errorf("after that: %v", err)
	}
	if err := k.Delete(t.Context(), true); err != nil {
		t.Error(err)
	}
	if _, err := c.In(scope.Name).Container(t.Context(), k.ID); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after a forced one: %v; want not found", err)
	}
}

func TestCreateRefused(t *testing.T) {
	c := demoNode(t, nil)
	before := everything(t, c)
	in := c.In(scope.Name)
	for name, test := range map[string]struct {
		o    client.CreateOptions
		kind error
	}{
		"no such image":       {client.CreateOptions{Image: "none"}, errdefs.ErrNotFound},
		"a bad name":          {client.CreateOptions{Image: "demo:latest", ID: "a/b"}, errdefs.ErrInvalidArgument},
		"a named user":        {client.CreateOptions{Image: "demo:latest", Program: client.Program{User: "nginx"}}, errdefs.ErrNotImplemented},
		"a user too large":    {client.CreateOptions{Image: "demo:latest", Program: client.Program{User: "4294967296"}}, errdefs.ErrInvalidArgument},
		"no such snapshotter": {client.CreateOptions{Image: "demo:latest", Snapshotter: "none"}, errdefs.ErrInvalidArgument},
	} {
		if _, err := in.Create(t.Context(), test.o); !errors.Is(err, test.kind) {
			t.Errorf("%s: %v; want %v", name, err, test.kind)
		}
	}
	if diff := cmp.Diff(before, everything(t, c)); diff != "" {
		t.Errorf("they left (-want +got):\n%s", diff)
	}
	if _, err := in.Create(t.Context(), client.CreateOptions{Image: "demo:latest", ID: "one"}); err != nil {
		t.Fatal(err)
	}
	before = everything(t, c)
	if _, err := in.Create(t.Context(), client.CreateOptions{Image: "demo:latest", ID: "one"}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	if diff := cmp.Diff(before, everything(t, c)); diff != "" {
		t.Errorf("the second of one name changed (-want +got):\n%s", diff)
	}
}

// TestImageLabelsDecideNothing runs an image whose labels, as a container's,
// would have a command of the image's choice run on the node.
func TestImageLabelsDecideNothing(t *testing.T) {
	c := clienttest.New(t, nil)
	l := clienttest.NewLayout()
	l.Add("evil", l.Image(t, ocispec.ImageConfig{
		Cmd:        []string{"true"},
		StopSignal: "SIGQUIT",
		Labels: map[string]string{
			"containerd.io/restart.loguri":           "binary:///bin/sh?-c=id",
			"Containerd.io/restart.status":           "running",
			"containerd.io/gc.root":                  "1",
			"io.containerd.image.config.stop-signal": "x",
			"io.cri-containerd.kind":                 "container",
			"gantry.dev/gates":                       "none",
			"nerdctl/log-uri":                        "binary:///bin/sh",
			"too.long":                               strings.Repeat("x", 5000),
			"maintainer":                             "somebody",
		},
	}, "layer"))
	if _, err := importFrom(t, c, l.Archive(t), client.ImportOptions{OwnNames: true}); err != nil {
		t.Fatal(err)
	}
	k, err := c.In(scope.Name).Create(t.Context(), client.CreateOptions{Image: "evil", Labels: map[string]string{"mine": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"maintainer": "somebody", "mine": "1", "io.containerd.image.config.stop-signal": "SIGQUIT"}
	if diff := cmp.Diff(want, k.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

// TestUnpackRefusesALayerThatIsNotTheConfigs also holds that nothing of it
// stays.
func TestUnpackRefusesALayerThatIsNotTheConfigs(t *testing.T) {
	c := clienttest.New(t, nil)
	l := clienttest.NewLayout()
	var other ocispec.Image
	first := l.Image(t, ocispec.ImageConfig{}, "one", "two")
	var m ocispec.Manifest
	unmarshal(t, l.Blobs[first.Digest], &m)
	unmarshal(t, l.Blobs[m.Config.Digest], &other)
	other.RootFS.DiffIDs[1] = other.RootFS.DiffIDs[0]
	m.Config = l.JSON(t, m.Config.MediaType, other)
	l.Add("evil", l.JSON(t, m.MediaType, m))
	images, err := importFrom(t, c, l.Archive(t), client.ImportOptions{OwnNames: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.In(scope.Name).Resolve(t.Context(), images[0].Target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.In(scope.Name).Unpack(t.Context(), r, client.SnapshotterDefault); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Unpack = %v; want a failed precondition", err)
	}
	for name := range everything(t, c) {
		if strings.HasPrefix(name, "snapshot ") && !strings.Contains(name, other.RootFS.DiffIDs[0].String()) || strings.HasPrefix(name, "lease ") {
			t.Errorf("it left %s", name)
		}
	}
}

func unmarshal(t *testing.T, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatal(err)
	}
}

func TestUnpackByManyAtOnce(t *testing.T) {
	c := demoNode(t, nil)
	img, err := c.Images.In(scope).Get(t.Context(), "demo:latest")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.In(scope.Name).Resolve(t.Context(), img.Target)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			top, err := c.In(scope.Name).Unpack(t.Context(), r, client.SnapshotterDefault)
			if err != nil || top != r.ChainID().String() {
				t.Errorf("Unpack = %q, %v", top, err)
			}
		})
	}
	wg.Wait()
	var kept []string
	for name := range everything(t, c) {
		if strings.HasPrefix(name, "snapshot ") || strings.HasPrefix(name, "lease ") {
			kept = append(kept, name)
		}
	}
	if len(kept) != 2 {
		t.Errorf("of two layers there is %v", kept)
	}
	info, err := c.Content.In(scope).Info(t.Context(), r.Config.Digest)
	if err != nil || info.Labels["containerd.io/gc.ref.snapshot.overlayfs"] != r.ChainID().String() {
		t.Errorf("the config keeps %v, %v", info.Labels, err)
	}
	info, err = c.Content.In(scope).Info(t.Context(), r.Layers[0].Digest)
	if err != nil || info.Labels["containerd.io/uncompressed"] != r.Image.RootFS.DiffIDs[0].String() {
		t.Errorf("the layer says %v, %v", info.Labels, err)
	}
}

func TestNamespaceChoosesSnapshotterAndRuntime(t *testing.T) {
	c := demoNode(t, nil)
	if _, err := c.Namespaces.Update(t.Context(), namespace.Info{Name: scope.Name, Labels: map[string]string{
		namespace.LabelRuntime: "io.containerd.other.v1",
	}}); err != nil {
		t.Fatal(err)
	}
	k := create(t, c, "true")
	if k.Runtime.Name != "io.containerd.other.v1" || k.Snapshotter != client.SnapshotterDefault {
		t.Errorf("runtime %q and snapshotter %q", k.Runtime.Name, k.Snapshotter)
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]uint32{
		"SIGTERM": 15, "TERM": 15, "term": 15, "9": 9, "SIGKILL": 9, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX": 64, "RTMAX-1": 63,
		"": 0, "0": 0, "65": 0, "-1": 0, "NONE": 0, "RTMIN+31": 0, "RTMAX-31": 0, "RTMIN+": 34, "SIGSIGTERM": 0,
	} {
		got, err := client.ParseSignal(s)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}
