package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

const (
	childRoot   = "CONTENTD_TEST_ROOT"   // of the store that the child serves
	childSocket = "CONTENTD_TEST_SOCKET" // where it does
)

// TestServeUntilKilled is the child of TestKillLosesNothingAcknowledged: contentd
// but for its main.
func TestServeUntilKilled(t *testing.T) {
	root := os.Getenv(childRoot)
	if root == "" {
		t.Skip("is run by TestKillLosesNothingAcknowledged")
	}
	cfg := Default()
	cfg.Root = root
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := Open(cfg, Needs{Log: log})
	must(t, err)
	must(t, os.RemoveAll(os.Getenv(childSocket)))
	lis, err := net.Listen("unix", os.Getenv(childSocket))
	must(t, err)
	srv := rpc.NewServer("contentd", log)
	contentrpc.Register(srv, s)
	go func() { _ = s.Collect(context.Background()) }()
	must(t, srv.Serve(lis))
}

// TestKillLosesNothingAcknowledged kills contentd again and again while clients
// write, resume, share and delete over its socket. What they were told is true
// at the end, and they went on by themselves each time.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	dir, err := os.MkdirTemp("", "contentd-") // the paths of sockets are short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) }) // once the store is closed
	root, socket := filepath.Join(dir, "root"), filepath.Join(dir, "s")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	conn, err := rpc.Dial(socket)
	must(t, err)
	defer conn.Close()

	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var wg sync.WaitGroup
	clients := make([]*client, 6)
	for i := range clients {
		c := &client{
			store: contentrpc.NewClient(conn),
			scope: namespace.Scope{Name: fmt.Sprintf("ns%d", i%2)},
			id:    i,
			rnd:   rand.New(rand.NewPCG(seed, uint64(i))),
			there: map[digest.Digest]bool{},
		}
		clients[i] = c
		wg.Go(func() { c.run(ctx) })
	}
	rnd := rand.New(rand.NewPCG(seed, 99))
	for range 8 {
		child := serve(t, root, socket)
		timer := time.NewTimer(time.Duration(100+rnd.IntN(300)) * time.Millisecond)
		<-timer.C
		must(t, child.Process.Kill())
		_ = child.Wait()
	}
	child := serve(t, root, socket)
	timer := time.NewTimer(300 * time.Millisecond)
	<-timer.C
	stop()
	wg.Wait()
	must(t, child.Process.Kill())
	_ = child.Wait()

	cfg := testConfig(t)
	cfg.Root = root
	s := openStore(t, cfg, nil)
	acked := 0
	for _, c := range clients {
		acked += c.acked
		for d, there := range c.there {
			b, err := content.ReadAll(t.Context(), s.In(c.scope), d, 1<<20)
			if there && err != nil || !there && !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("blob %s of client %d was said to be there: %t; it has %d bytes, %v", d, c.id, there, len(b), err)
			}
		}
		if c.wrong != nil {
			t.Errorf("client %d: %v", c.id, c.wrong)
		}
	}
	t.Logf("%d acknowledged", acked)
	if acked < 50 {
		t.Errorf("only %d acknowledged", acked)
	}
	s.sweep(t.Context())
	checkFiles(t, s, "at the end")
}

// serve starts the child.
func serve(t *testing.T, root, socket string) *exec.Cmd {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestServeUntilKilled$")
	child.Env = append(os.Environ(), childRoot+"="+root, childSocket+"="+socket)
	child.Stderr = os.Stderr
	must(t, child.Start())
	return child
}

// A client does this and that, and notes what it was told.
type client struct {
	store content.Stores
	scope namespace.Scope
	id    int
	rnd   *rand.Rand
	there map[digest.Digest]bool // what it knows
	acked int
	wrong error
}

func (c *client) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil && c.wrong == nil; n++ {
		b := c.body(n)
		c.put(ctx, b, n)
		for d, there := range c.there {
			if there && c.rnd.IntN(3) == 0 {
				c.remove(ctx, d)
				break
			}
		}
	}
}

// body is of this client and this time.
func (c *client) body(n int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%d of %d, ", n, c.id)), 1+c.rnd.IntN(20_000))
}

// put tries until it is told that the blob is there.
func (c *client) put(ctx context.Context, b []byte, n int) {
	d := digest.FromBytes(b)
	o := content.WriterOptions{Ref: fmt.Sprintf("%d-%d", c.id, n), Total: int64(len(b)), Expected: d}
	for ctx.Err() == nil {
		err := content.Put(ctx, c.store.In(c.scope), o, slow(c.rnd, b), nil)
		switch {
		case err == nil:
			c.there[d] = true
			c.acked++
			return
		case ctx.Err() != nil:
			return
		case !away(err):
			c.wrong = fmt.Errorf("put: %w", err)
			return
		}
	}
}

// slow is a reader whose every byte takes its time, in chunks.
func slow(rnd *rand.Rand, b []byte) io.Reader {
	at := rnd.IntN(len(b))
	return io.MultiReader(bytes.NewReader(b[:at]), bytes.NewReader(b[at:]))
}

// away says whether an error is that of a server that was killed.
func away(err error) bool {
	return errors.Is(err, errdefs.ErrUnavailable) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (c *client) remove(ctx context.Context, d digest.Digest) {
	delete(c.there, d)
	for ctx.Err() == nil {
		err := c.store.In(c.scope).Delete(ctx, d)
		switch {
		case err == nil, errors.Is(err, errdefs.ErrNotFound):
			c.there[d] = false
			c.acked++
			return
		case ctx.Err() != nil:
			return
		case !away(err):
			c.wrong = fmt.Errorf("delete: %w", err)
			return
		}
	}
}
