package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contenttest"
)

// someBytes are 3 MiB and a bit, and their digest.
func someBytes() ([]byte, digest.Digest) {
	b := make([]byte, 3<<20+7)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b, digest.FromBytes(b)
}

func writeFile(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// wantBlob is an error unless the namespace has the blob, and no ingest.
func wantBlob(t *testing.T, c *client.Client, b []byte, labels int) {
	t.Helper()
	d := digest.FromBytes(b)
	got, err := content.ReadAll(t.Context(), c.Content.In(scope), d, 1<<30)
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("the blob has %d bytes, %v", len(got), err)
	}
	info, err := c.Content.In(scope).Info(t.Context(), d)
	if err != nil || len(info.Labels) != labels {
		t.Errorf("its labels are %v, %v; want %d", info.Labels, err, labels)
	}
	wantNoIngest(t, c)
}

func wantNoIngest(t *testing.T, c *client.Client) {
	t.Helper()
	for name := range everything(t, c) {
		if strings.HasPrefix(name, "ingest ") {
			t.Errorf("it left %s", name)
		}
	}
}

func TestPutGoesOnWhenContentRestarts(t *testing.T) {
	b, d := someBytes()
	for name, put := range map[string]func(*client.Namespace, client.PutOptions) (client.PutResult, error){
		"file": func(n *client.Namespace, o client.PutOptions) (client.PutResult, error) {
			return n.PutFile(t.Context(), writeFile(t, b), o)
		},
		"file of a known digest": func(n *client.Namespace, o client.PutOptions) (client.PutResult, error) {
			o.Digest = d
			return n.PutFile(t.Context(), writeFile(t, b), o)
		},
		"reader": func(n *client.Namespace, o client.PutOptions) (client.PutResult, error) {
			return n.Put(t.Context(), iotest.HalfReader(bytes.NewReader(b)), o)
		},
		"reader of a known digest": func(n *client.Namespace, o client.PutOptions) (client.PutResult, error) {
			o.Digest, o.Size = d, int64(len(b))
			return n.Put(t.Context(), bytes.NewReader(b), o)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := clienttest.New(t, nil)
			c.Content = shakyContent{c.Content}
			var last client.Progress
			seen := make(map[client.Stage]bool)
			o := client.PutOptions{Labels: map[string]string{"a": "1"}, Progress: func(p client.Progress) {
				last, seen[p.Stage] = p, true
			}}
			got, err := put(c.In(scope.Name), o)
			if want := (client.PutResult{Digest: d, Size: int64(len(b))}); err != nil || got != want {
				t.Errorf("put = %+v, %v; want %+v", got, err, want)
			}
			if !seen[client.StageSend] || !cmp.Equal(last, client.Progress{Stage: client.StageCommit, Done: int64(len(b)), Total: int64(len(b))}) {
				t.Errorf("it told of %v, and last of %+v", seen, last)
			}
			wantBlob(t, c, b, 1)
			o.Labels = map[string]string{"b": "2"}
			if got, err = put(c.In(scope.Name), o); err != nil || got.Digest != d || got.Size != int64(len(b)) {
				t.Errorf("once more: %+v, %v", got, err)
			}
			wantBlob(t, c, b, 2)
		})
	}
}

func TestPutOfWhatIsThereSendsNothing(t *testing.T) {
	b, d := someBytes()
	c := clienttest.New(t, nil)
	n := c.In(scope.Name)
	if _, err := n.Put(t.Context(), bytes.NewReader(b), client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	want := client.PutResult{Digest: d, Size: int64(len(b)), Existed: true}
	if got, err := n.Put(t.Context(), iotest.ErrReader(errors.New("it was read")), client.PutOptions{Digest: d}); err != nil || got != want {
		t.Errorf("Put = %+v, %v; want %+v", got, err, want)
	}
	if got, err := n.Put(t.Context(), bytes.NewReader(b), client.PutOptions{}); err != nil || got != want {
		t.Errorf("Put without digest = %+v, %v; want %+v", got, err, want)
	}
	want = client.PutResult{Digest: d, Size: int64(len(b)), Resumed: int64(len(b))}
	if got, err := c.In("other").PutFile(t.Context(), writeFile(t, b), client.PutOptions{}); err != nil || got != want {
		t.Errorf("PutFile in another namespace = %+v, %v; want %+v", got, err, want)
	}
}

func TestPutResumes(t *testing.T) {
	b, d := someBytes()
	broken := errors.New("the line is cut")
	for name, o := range map[string]client.PutOptions{
		"by its digest": {Digest: d, Size: int64(len(b))},
		"by a ref":      {Ref: "mine"},
	} {
		t.Run(name, func(t *testing.T) {
			c := clienttest.New(t, nil)
			n := c.In(scope.Name)
			half := io.MultiReader(bytes.NewReader(b[:2<<20]), iotest.ErrReader(broken))
			got, err := n.Put(t.Context(), half, o)
			if !errors.Is(err, broken) || got.Kept != 2<<20 {
				t.Fatalf("Put = %+v, %v; want it broken, and 2 MiB kept", got, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			o.Progress = func(p client.Progress) {
				if p.Done > 2<<20 {
					cancel()
				}
			}
			if o.Digest != "" {
				if got, err := n.PutFile(ctx, writeFile(t, b), o); !errors.Is(err, context.Canceled) && err != nil {
					t.Fatalf("PutFile that is cancelled = %+v, %v", got, err)
				}
			}
			cancel()
			o.Progress = nil
			got, err = n.Put(t.Context(), bytes.NewReader(b), o)
			if err != nil || got.Digest != d || got.Resumed < 2<<20 && !got.Existed {
				t.Errorf("Put again = %+v, %v; want it resumed", got, err)
			}
			wantBlob(t, c, b, 0)
		})
	}
}

func TestPutOfOtherBytesKeepsNothing(t *testing.T) {
	b, d := someBytes()
	other := digest.FromString("other")
	for name, c := range map[string]struct {
		o    client.PutOptions
		kind error
		kept int64
	}{
		"another digest":           {client.PutOptions{Digest: other}, errdefs.ErrFailedPrecondition, 0},
		"another digest and size":  {client.PutOptions{Digest: other, Size: int64(len(b))}, errdefs.ErrFailedPrecondition, 0},
		"more than said":           {client.PutOptions{Size: int64(len(b)) - 1}, errdefs.ErrFailedPrecondition, 0},
		"fewer than said":          {client.PutOptions{Size: int64(len(b)) + 1}, io.ErrUnexpectedEOF, 0},
		"fewer, and with a digest": {client.PutOptions{Digest: d, Size: int64(len(b)) + 1}, io.ErrUnexpectedEOF, int64(len(b))},
		"no digest":                {client.PutOptions{Digest: "sha256:abc"}, errdefs.ErrInvalidArgument, 0},
		"a bad label":              {client.PutOptions{Labels: map[string]string{"": "x"}}, errdefs.ErrInvalidArgument, 0},
		"no lease":                 {client.PutOptions{Lease: "none"}, errdefs.ErrNotFound, 0},
	} {
		t.Run(name, func(t *testing.T) {
			node := clienttest.New(t, nil)
			got, err := node.In(scope.Name).Put(t.Context(), bytes.NewReader(b), c.o)
			if !errors.Is(err, c.kind) || got.Kept != c.kept {
				t.Errorf("Put = %+v, %v; want %v and %d bytes kept", got, err, c.kind, c.kept)
			}
			if c.kept == 0 {
				wantNoIngest(t, node)
			}
		})
	}
	c := clienttest.New(t, nil)
	if _, err := c.In(scope.Name).PutFile(t.Context(), t.TempDir(), client.PutOptions{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("PutFile of a directory = %v", err)
	}
	if _, err := c.In(scope.Name).PutFile(t.Context(), writeFile(t, b), client.PutOptions{Digest: other}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("PutFile of another digest = %v", err)
	}
	wantNoIngest(t, c)
}

// TestPutOfAFileThatChanges holds that a file which is cut while it is put is
// said to have changed.
func TestPutOfAFileThatChanges(t *testing.T) {
	b, _ := someBytes()
	c := clienttest.New(t, nil)
	name := writeFile(t, b)
	_, err := c.In(scope.Name).PutFile(t.Context(), name, client.PutOptions{Progress: func(p client.Progress) {
		if p.Stage == client.StageSend && p.Done > 0 {
			if err := os.Truncate(name, p.Done+1); err != nil {
				t.Error(err)
			}
		}
	}})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "changed") {
		t.Errorf("PutFile = %v", err)
	}
	wantNoIngest(t, c)
}

func TestPutWaitsForOthers(t *testing.T) {
	b, d := someBytes()
	c := clienttest.New(t, nil)
	other, err := c.Content.In(scope).Writer(t.Context(), content.WriterOptions{Ref: "put-" + d.String(), Expected: d, Total: int64(len(b))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write(b[:100]); err != nil {
		t.Fatal(err)
	}
	var release sync.Once
	got, err := c.In(scope.Name).PutFile(t.Context(), writeFile(t, b), client.PutOptions{Progress: func(p client.Progress) {
		if p.Stage == client.StageWait {
			release.Do(func() { other.Close() })
		}
	}})
	if err != nil || got.Resumed != 100 {
		t.Errorf("PutFile = %+v, %v; want it to go on from 100", got, err)
	}
	wantBlob(t, c, b, 0)
}

func TestManyPutTheSameFile(t *testing.T) {
	b, d := someBytes()
	c := clienttest.New(t, nil)
	c.Content = shakyContent{c.Content}
	name := writeFile(t, b)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := c.In(scope.Name).PutFile(t.Context(), name, client.PutOptions{}); err != nil || got.Digest != d {
				t.Errorf("PutFile = %+v, %v", got, err)
			}
		})
	}
	wg.Wait()
	wantBlob(t, c, b, 0)
}

func TestPutThatIsAborted(t *testing.T) {
	b, d := someBytes()
	c := clienttest.New(t, nil)
	_, err := c.In(scope.Name).PutFile(t.Context(), writeFile(t, b), client.PutOptions{Progress: func(p client.Progress) {
		if p.Stage == client.StageSend && p.Done > 0 {
			if err := c.Content.In(scope).Abort(t.Context(), "put-"+d.String()); err != nil {
				t.Error(err)
			}
		}
	}})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("PutFile = %v; want not found", err)
	}
	wantNoIngest(t, c)
}

func ExampleNamespace_Put() {
	// A tool has a client of client.Dial("/run/gantry/gantry.sock").
	c := client.Client{Content: contenttest.NewMemory(nil)}
	n, ctx := c.In("default"), context.Background()

	blob, err := n.Put(ctx, strings.NewReader("hello\n"), client.PutOptions{Labels: map[string]string{"from": "me"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	var got strings.Builder
	size, err := n.Get(ctx, blob.Digest, &got, client.GetOptions{})
	fmt.Printf("%s has %d bytes, %v: %s", blob.Digest.Encoded()[:8], size, err, &got)

	again, err := n.Put(ctx, strings.NewReader("hello\n"), client.PutOptions{Digest: blob.Digest})
	fmt.Println("it was there:", again.Existed, err)
	// Output:
	// 5891b5b5 has 6 bytes, <nil>: hello
	// it was there: true <nil>
}
