package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
)

const (
	killsOf  = "CONTENTD_TEST_KILLS" // how many, if not killsFew
	killsFew = 15

	clients = 8
	readers = 2

	// patience is how long anything may take on a machine that is busy.
	patience = 2 * time.Minute
)

// TestKillLosesNothingAcknowledged kills contentd, the real one, again and again
// while clients write, resume, share, label and delete over its socket, and
// others read. They go on by themselves each time; nothing that they were told
// is lost, nothing that they read is wrong, and no ref stays held.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	kills, err := strconv.Atoi(os.Getenv(killsOf))
	if err != nil {
		kills = killsFew
	}
	seed := newSeed(t)
	d := buildDaemon(t)
	conn, err := rpc.Dial(d.socket)
	must(t, err)
	defer conn.Close()

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var acked, seen atomic.Int64
	var wg sync.WaitGroup
	all := make([]*client, clients)
	// Half of them have files where they can.
	files := contentrpc.HandlesAt(d.files)
	files.WriteMin = 1 << 10 // blobs are small here
	defer files.Close()
	stores := func(i int) content.Stores {
		if i%2 == 0 {
			return contentrpc.NewClient(conn)
		}
		return contentrpc.WithHandles(contentrpc.NewClient(conn), files)
	}
	for i := range all {
		all[i] = newClient(stores(i), i, seed, &acked)
		wg.Go(func() { all[i].run(ctx) })
	}
	var rot atomic.Value // of error
	for i := range readers {
		wg.Go(func() {
			if err := readOn(ctx, contentrpc.NewClient(conn), files, rand.New(rand.NewPCG(seed, uint64(1000+i))), &seen); err != nil {
				rot.Store(err)
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, 99))
	for n := range kills {
		d.start(t)
		if n%8 == 7 {
			wait(time.Duration(rnd.IntN(100)) * time.Millisecond) // as it starts
		} else {
			d.ready(t)
			until := acked.Load() + rnd.Int64N(60)
			reached(t, "the clients go on", func() bool { return acked.Load() >= until || anyWrong(all) })
			wait(time.Duration(rnd.IntN(3000)) * time.Microsecond)
		}
		d.kill(t)
	}
	d.start(t)
	d.ready(t)
	until := acked.Load() + 20
	reached(t, "the clients go on", func() bool { return acked.Load() >= until || anyWrong(all) })
	stop()
	wg.Wait()
	resumed := 0
	for _, c := range all {
		c.verify(t)
		resumed += c.resumed
	}
	if err, ok := rot.Load().(error); ok {
		t.Errorf("a reader: %v", err)
	}
	d.end(t)
	t.Logf("%d kills, %d acknowledged, %d resumed, %d blobs read", kills, acked.Load(), resumed, seen.Load())
	if resumed == 0 || seen.Load() == 0 {
		t.Error("nothing was resumed, or nothing read")
	}

	cfg := testConfig(t)
	cfg.Root = d.root
	s := openStore(t, cfg, nil)
	s.sweep(t.Context())
	checkFiles(t, s, "at the end")
}

func anyWrong(all []*client) bool {
	for _, c := range all {
		if c.failed.Load() {
			return true
		}
	}
	return false
}

func wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// reached waits until what holds, for as long as a busy machine may take.
func reached(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); wait(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// readOn reads blobs until ctx ends, from files as often as not. Those that it can
// read are what they are named.
func readOn(ctx context.Context, stores content.Stores, files *contentrpc.Handles, rnd *rand.Rand, seen *atomic.Int64) error {
	for ctx.Err() == nil {
		scope := scopeOf(rnd.IntN(clients))
		in := stores.In(scope)
		for info, err := range in.List(ctx) {
			if err != nil {
				break
			}
			if rnd.IntN(10) > 0 {
				continue
			}
			var r readCloser
			if rnd.IntN(2) == 0 {
				r, err = in.Open(ctx, info.Digest)
			} else {
				r, err = files.Files(scope).OpenFile(ctx, info.Digest)
			}
			if err == nil {
				wait(time.Duration(rnd.IntN(300)*rnd.IntN(2)) * time.Millisecond)
				err = errors.Join(readWhole(r, info), r.Close())
			}
			switch {
			case err == nil:
				seen.Add(1)
			case ctx.Err() != nil, away(err), errors.Is(err, errdefs.ErrNotFound):
			default:
				return fmt.Errorf("blob %s: %w", info.Digest, err)
			}
		}
		wait(time.Millisecond)
	}
	return nil
}

type readCloser interface {
	io.ReaderAt
	io.Closer
}

// readWhole reads a blob that was opened some time ago, since when contentd may
// have been killed and the blob be gone.
func readWhole(r io.ReaderAt, info content.Info) error {
	b := make([]byte, info.Size)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return fmt.Errorf("%d bytes of %d: %w", n, len(b), err)
	}
	if d := info.Digest.Algorithm().FromBytes(b); d != info.Digest {
		return fmt.Errorf("it is %s: %w", d, errdefs.ErrDataLoss)
	}
	return nil
}

// A real is contentd as it is installed, and where it is.
type real struct {
	program, config, root string
	socket, files         string
	child                 *exec.Cmd
	said                  bytes.Buffer // by all of them
}

// buildDaemon builds contentd, which ends with the test if not before.
func buildDaemon(t *testing.T) *real {
	t.Helper()
	dir, err := os.MkdirTemp("", "contentd-") // the paths of sockets are short
	must(t, err)
	d := &real{
		program: filepath.Join(dir, "gantryd"), config: filepath.Join(dir, "config"),
		root: filepath.Join(dir, "root"), socket: suite.Socket(dir, suite.Contentd), files: suite.BlobsSocket(dir),
	}
	t.Cleanup(func() {
		if d.child != nil {
			d.kill(t)
		}
		if t.Failed() {
			b := d.said.Bytes()
			t.Logf("contentd said\n%s", b[max(0, len(b)-1<<14):])
		}
		os.RemoveAll(dir)
	})
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", d.program, "../cmd/gantryd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	must(t, os.WriteFile(d.config, fmt.Appendf(nil, "sockets = %q\ngroup = ''\nlog_level = 'error'\nroot = %q\nfree_min_mib = 64\n", dir, d.root), 0o600))
	return d
}

func (d *real) start(t *testing.T) {
	t.Helper()
	d.child = exec.Command(d.program, suite.Contentd, "-config", d.config)
	d.child.Stdout, d.child.Stderr = &d.said, &d.said
	d.child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, d.child.Start())
}

func (d *real) ready(t *testing.T) {
	t.Helper()
	reached(t, "contentd is ready", func() bool {
		c, err := net.Dial("unix", d.socket)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

func (d *real) kill(t *testing.T) {
	t.Helper()
	must(t, d.child.Process.Kill())
	err := d.child.Wait()
	d.child = nil
	if killed := new(exec.ExitError); !errors.As(err, &killed) || killed.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("contentd ended by itself: %v", err)
	}
}

// end stops contentd as systemd does.
func (d *real) end(t *testing.T) {
	t.Helper()
	must(t, d.child.Process.Signal(syscall.SIGTERM))
	err := d.child.Wait()
	d.child = nil
	if err != nil {
		t.Errorf("contentd ended with %v", err)
	}
}
