package client_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/client/clienttest"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
)

// An oddContent gives out readers that read does something to.
type oddContent struct {
	content.Stores
	read func(r content.Reader, p []byte, off int64) (int, error)
}

func (o oddContent) In(scope namespace.Scope) content.Store {
	return oddContentIn{o.Stores.In(scope), o}
}

type oddContentIn struct {
	content.Store
	o oddContent
}

func (o oddContentIn) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	r, err := o.Store.Open(ctx, d)
	return oddReader{r, o.o}, err
}

type oddReader struct {
	content.Reader
	o oddContent
}

func (r oddReader) ReadAt(p []byte, off int64) (int, error) { return r.o.read(r.Reader, p, off) }

// putSome makes someBytes a blob of a new node.
func putSome(t *testing.T) (*client.Client, []byte, digest.Digest) {
	t.Helper()
	c := clienttest.New(t, nil)
	b, d := someBytes()
	if _, err := c.In(scope.Name).Put(t.Context(), bytes.NewReader(b), client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	return c, b, d
}

func TestGetGoesOnWhenContentRestarts(t *testing.T) {
	c, b, d := putSome(t)
	calls := 0
	c.Content = oddContent{c.Content, func(r content.Reader, p []byte, off int64) (int, error) {
		if calls++; calls%2 == 1 {
			n, _ := r.ReadAt(p[:len(p)/2], off)
			return n, errdefs.ErrUnavailable
		}
		return r.ReadAt(p, off)
	}}
	var got bytes.Buffer
	var last client.Progress
	waited := false
	size, err := c.In(scope.Name).Get(t.Context(), d, &got, client.GetOptions{Progress: func(p client.Progress) {
		last = p
		waited = waited || p.Stage == client.StageWait
	}})
	if err != nil || size != int64(len(b)) || !bytes.Equal(got.Bytes(), b) || !waited {
		t.Errorf("Get = %d, %v, and wrote %d bytes; waited %t", size, err, got.Len(), waited)
	}
	if want := (client.Progress{Stage: client.StageReceive, Done: size, Total: size}); !cmp.Equal(last, want) {
		t.Errorf("it told last of %+v; want %+v", last, want)
	}
}

func TestGetFile(t *testing.T) {
	c, b, d := putSome(t)
	n := c.In(scope.Name)
	dir := t.TempDir()
	name, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if _, err := n.GetFile(t.Context(), d, name, client.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	if _, err := n.GetFile(t.Context(), d, link, client.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", fi, err)
	}
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v; want that of the old one", fi.Mode(), err)
	}
	if _, err := n.GetFile(t.Context(), d, os.DevNull, client.GetOptions{}); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(os.DevNull); err != nil || fi.Mode().IsRegular() {
		t.Fatalf("%s is a file now: %v", os.DevNull, err)
	}
}

// TestGetVouchesForTheBytes holds that a file has the right bytes or is as it
// was.
func TestGetVouchesForTheBytes(t *testing.T) {
	wrong := func(r content.Reader, p []byte, off int64) (int, error) {
		n, err := r.ReadAt(p, off)
		if n > 0 {
			p[n-1]++
		}
		return n, err
	}
	short := func(r content.Reader, p []byte, off int64) (int, error) {
		return r.ReadAt(p[:min(len(p), 1000)], min(off, r.Size()-2000)+2000)
	}
	broken := func(r content.Reader, p []byte, off int64) (int, error) { return 0, iotest.ErrTimeout }
	for name, c := range map[string]struct {
		read func(content.Reader, []byte, int64) (int, error)
		kind error
	}{"wrong": {wrong, errdefs.ErrDataLoss}, "short": {short, errdefs.ErrDataLoss}, "broken": {broken, iotest.ErrTimeout}} {
		node, _, d := putSome(t)
		node.Content = oddContent{node.Content, c.read}
		n := node.In(scope.Name)
		if _, err := n.Get(t.Context(), d, &bytes.Buffer{}, client.GetOptions{}); !errors.Is(err, c.kind) {
			t.Errorf("%s: Get = %v; want %v", name, err, c.kind)
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		if _, err := n.GetFile(t.Context(), d, file, client.GetOptions{}); !errors.Is(err, c.kind) {
			t.Errorf("%s: GetFile = %v; want %v", name, err, c.kind)
		}
		if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := n.GetFile(t.Context(), d, file, client.GetOptions{}); !errors.Is(err, c.kind) {
			t.Errorf("%s: GetFile = %v; want %v", name, err, c.kind)
		}
		entries, err := os.ReadDir(dir)
		if old, e := os.ReadFile(file); err != nil || e != nil || len(entries) != 1 || string(old) != "old" {
			t.Errorf("%s: it left %v, and %q in the file", name, entries, old)
		}
	}
}

func TestGetOfNothing(t *testing.T) {
	c := clienttest.New(t, nil)
	n := c.In(scope.Name)
	for d, kind := range map[digest.Digest]error{digest.FromString("x"): errdefs.ErrNotFound, "sha256:x": errdefs.ErrInvalidArgument} {
		if _, err := n.Get(t.Context(), d, &bytes.Buffer{}, client.GetOptions{}); !errors.Is(err, kind) {
			t.Errorf("Get of %s = %v; want %v", d, err, kind)
		}
		if _, err := n.GetFile(t.Context(), d, filepath.Join(t.TempDir(), "f"), client.GetOptions{}); !errors.Is(err, kind) {
			t.Errorf("GetFile of %s = %v; want %v", d, err, kind)
		}
	}
	if _, err := n.Put(t.Context(), bytes.NewReader(nil), client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if size, err := n.Get(t.Context(), digest.FromBytes(nil), &bytes.Buffer{}, client.GetOptions{}); size != 0 || err != nil {
		t.Errorf("Get of the empty blob = %d, %v", size, err)
	}
}
