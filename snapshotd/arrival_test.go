package snapshotd

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/contentd"
	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/fdpass"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/services/unpack"
)

// A contentStore is contentd behind its two sockets, which can be stopped and
// started.
type contentStore struct {
	t    *testing.T
	cfg  contentd.Config
	dir  string
	shut bool // it lends no files
	stop func()
}

func startContent(t *testing.T, shut bool) *contentStore {
	c := &contentStore{t: t, cfg: contentd.Default(), dir: t.TempDir(), shut: shut}
	c.cfg.Root, c.cfg.FreeMinMiB = filepath.Join(c.dir, "contentd"), 64
	c.start()
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *contentStore) socket() string { return filepath.Join(c.dir, "s") }

func (c *contentStore) start() {
	c.t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := contentd.Open(c.cfg, contentd.Needs{Leases: noLeases{}, Log: log})
	must(c.t, err)
	lis, err := net.Listen("unix", c.socket())
	must(c.t, err)
	files, err := net.ListenUnix(fdpass.Network, &net.UnixAddr{Name: c.socket() + ".blobs", Net: fdpass.Network})
	must(c.t, err)
	srv := rpc.NewServer(suite.Contentd, log)
	contentrpc.Register(srv, s)
	lender := &contentrpc.HandleServer{Stores: s, Guard: rpc.NewGuard(suite.Contentd, log), Store: s.Name(), Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(lis) })
	if c.shut {
		must(c.t, files.Close())
	} else {
		served.Go(func() { lender.Serve(ctx, files) })
	}
	c.stop = sync.OnceFunc(func() {
		srv.Stop()
		cancel()
		served.Wait()
		must(c.t, s.Close())
	})
}

// client is contentd as another daemon has it.
func (c *contentStore) client() content.Stores {
	c.t.Helper()
	conn, err := rpc.Dial(c.socket())
	must(c.t, err)
	files := contentrpc.HandlesAt(c.socket() + ".blobs")
	c.t.Cleanup(func() {
		files.Close()
		conn.Close()
	})
	return contentrpc.WithHandles(contentrpc.NewClient(conn), files)
}

// An arriving layer is followed by a call of Unpack.
type arrivingLayer struct {
	t     *testing.T
	store *contentStore
	blobs content.Store
	layer unpack.Layer
	bytes []byte       // of the layer
	read  atomic.Int64 // what the call has told of

	fell atomic.Bool // it began anew
}

// half of a layer is more than contentd keeps to itself before it is a record.
const half = 5 << 18

// follow unpacks a layer on another one, while bring brings its bytes. The layer
// below is there.
func follow(t *testing.T, bring func(a *arrivingLayer)) (a *arrivingLayer, files map[string]string, err error) {
	t.Helper()
	store := startContent(t, false)
	needs := quietNeeds(t)
	needs.Content = store.client()
	s := openTest(t, testConfig(t), needs)
	noise := make([]byte, 2*half)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	archive := difftest.Tar(difftest.File("first", "1"), difftest.File("noise", string(noise)), difftest.File("last", "2"))
	a = &arrivingLayer{t: t, store: store, blobs: store.client().In(one), bytes: archive}
	a.layer = unpack.Layer{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(archive), Size: int64(len(archive))},
		DiffID:     digest.FromBytes(archive), Ingest: "arriving",
	}
	base := difftest.Tar(difftest.Dir("base"))
	below := unpack.Layer{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(base), Size: int64(len(base))},
		DiffID:     digest.FromBytes(base),
	}
	w := a.writer("base")
	a.write(w, base)
	must(t, w.Commit(t.Context(), 0, below.Digest, nil))

	layers := []unpack.Layer{below, a.layer}
	names, err := unpack.Names(layers)
	must(t, err)
	service, err := s.Unpacking().In(one, Overlayfs)
	must(t, err)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- unpack.Wait(service.Unpack(ctx, layers), func(p unpack.Progress) {
			if p.Layer == 1 {
				if p.Done < a.read.Swap(p.Done) {
					a.fell.Store(true)
				}
			}
		})
	}()
	func() {
		defer func() {
			if t.Failed() {
				cancel()
			}
		}()
		bring(a)
	}()
	err = <-ended
	cancel()
	if err == nil {
		files = look(t, s, one, names[1])
	} else if _, err := in(t, s, one).Stat(t.Context(), names[1]); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("there is a snapshot: %v", err)
	}
	wantTidy(t, s, "in the end")
	return a, files, err
}

func (a *arrivingLayer) writer(ref string) content.Writer {
	a.t.Helper()
	w, err := a.blobs.Writer(a.t.Context(), content.WriterOptions{Ref: ref})
	must(a.t, err)
	a.t.Cleanup(func() { w.Close() })
	return w
}

func (a *arrivingLayer) write(w content.Writer, b []byte) {
	a.t.Helper()
	if _, err := w.Write(b); err != nil {
		a.t.Fatalf("Write: %v", err)
	}
}

// followed waits until the call has read so many bytes of the layer.
func (a *arrivingLayer) followed(n int) {
	a.t.Helper()
	waitFor(a.t, "the layer to be followed", func() bool { return a.read.Load() >= int64(n) })
}

// TestLayersAreFollowedAsTheyArrive has the bytes of a layer arrive in the ways
// in which they do, and looks at what becomes of it. The content store is the
// real one, across its sockets.
func TestLayersAreFollowedAsTheyArrive(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name  string
		bring func(a *arrivingLayer)
		anew  bool  // the call has to begin the layer anew
		want  error // nil if the snapshot is made
	}{
		{name: "slowly, and are never committed", bring: slowly},
		{name: "and are committed", bring: committed},
		{name: "and are committed under another ref", bring: committedElsewhere},
		{name: "and others are in the way of an old ingest", bring: leftOver},
		{name: "and their ingest is aborted", bring: abortedHalfway, want: errdefs.ErrNotFound},
		{name: "and are truncated and replaced", bring: replaced, anew: true},
		{name: "and are begun anew", bring: begunAnew, anew: true},
		{name: "and are changed where they were read", bring: changed, anew: true},
		{name: "and become another blob", bring: another, anew: true, want: errdefs.ErrNotFound},
		{name: "and contentd starts again", bring: restarted},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, files, err := follow(t, c.bring)
			if !errors.Is(err, c.want) {
				t.Fatalf("Unpack: %v, want %v", err, c.want)
			}
			if a.fell.Load() && !c.anew {
				t.Error("it was begun anew")
			}
			if err != nil {
				return
			}
			if files["first"] != "file 1" || files["last"] != "file 2" || !strings.HasPrefix(files["base"], "dir") || files["noise"] != "file of 2621440" {
				t.Errorf("files %v", files)
			}
		})
	}
}

func slowly(a *arrivingLayer) {
	w := a.writer(a.layer.Ingest)
	for at := 0; at < len(a.bytes); at += half / 2 {
		end := min(len(a.bytes), at+half/2)
		a.write(w, a.bytes[at:end])
		a.followed(end)
	}
}

// halfway writes half of the layer, and returns when that was read.
func halfway(a *arrivingLayer) content.Writer {
	w := a.writer(a.layer.Ingest)
	a.write(w, a.bytes[:half])
	a.followed(half)
	return w
}

func (a *arrivingLayer) commit(w content.Writer) {
	a.t.Helper()
	must(a.t, w.Commit(a.t.Context(), 0, a.layer.Digest, nil))
}

func committed(a *arrivingLayer) {
	w := halfway(a)
	a.write(w, a.bytes[half:])
	a.commit(w)
}

// whole makes the blob in one go.
func (a *arrivingLayer) whole(ref string) {
	w := a.writer(ref)
	a.write(w, a.bytes)
	a.commit(w)
}

func committedElsewhere(a *arrivingLayer) {
	halfway(a)
	a.whole("other")
}

// leftOver has an ingest of somebody who has gone, of bytes that are there.
func leftOver(a *arrivingLayer) {
	a.whole("other")
	w := a.writer(a.layer.Ingest)
	a.write(w, a.bytes[:1000])
	must(a.t, w.Close())
}

func abortedHalfway(a *arrivingLayer) {
	w := halfway(a)
	must(a.t, w.Close())
	must(a.t, a.blobs.Abort(a.t.Context(), a.layer.Ingest))
}

func replaced(a *arrivingLayer) {
	w := a.writer(a.layer.Ingest)
	a.write(w, a.otherBytes()[:half])
	a.followed(half)
	must(a.t, w.Truncate(a.t.Context(), 0))
	a.write(w, a.bytes)
	a.commit(w)
}

func begunAnew(a *arrivingLayer) {
	abortedHalfway(a)
	a.whole(a.layer.Ingest)
}

// changed has somebody write where he may, and where others have read.
func changed(a *arrivingLayer) {
	files := a.store.client().(content.FileStores).Files(one)
	w, err := files.FileWriter(a.t.Context(), content.WriterOptions{Ref: a.layer.Ingest})
	must(a.t, err)
	defer w.Close()
	f, err := w.File(a.t.Context())
	must(a.t, err)
	wrong := a.otherBytes()
	if _, err := f.WriteAt(wrong[:half], 0); err != nil {
		a.t.Fatal(err)
	}
	a.followed(half)
	if _, err := f.WriteAt(a.bytes, 0); err != nil {
		a.t.Fatal(err)
	}
	must(a.t, f.Close())
	must(a.t, w.Commit(a.t.Context(), 0, a.layer.Digest, nil))
}

// otherBytes are as many as the layer's, and an archive as far as they go.
func (a *arrivingLayer) otherBytes() []byte {
	noise := make([]byte, len(a.bytes))
	rand.NewChaCha8([32]byte{2}).Read(noise)
	return difftest.Tar(difftest.File("evil", string(noise)))[:len(a.bytes)]
}

func another(a *arrivingLayer) {
	w := a.writer(a.layer.Ingest)
	b := a.otherBytes()
	a.write(w, b[:half])
	a.followed(half)
	a.write(w, b[half:])
	must(a.t, w.Commit(a.t.Context(), 0, digest.FromBytes(b), nil))
}

// restarted has the writer and who follows find their way back.
func restarted(a *arrivingLayer) {
	w := halfway(a)
	a.store.stop()
	w.Close() // who kept its file would be a second writer
	a.store.start()
	waitFor(a.t, "contentd to be back", func() (back bool) {
		var err error
		w, err = a.blobs.Writer(a.t.Context(), content.WriterOptions{Ref: a.layer.Ingest})
		if err != nil && !errors.Is(err, errdefs.ErrUnavailable) {
			a.t.Errorf("Writer: %v", err)
		}
		return err == nil
	})
	defer w.Close()
	st, err := w.Status(a.t.Context())
	if err != nil || st.Offset != half {
		a.t.Fatalf("the ingest is %+v, %v; want it kept", st, err)
	}
	a.write(w, a.bytes[half:])
	a.commit(w)
}

// TestWhatIsNotFollowedTakesNoPlace: where no files are lent, a layer that is
// still on its way does not keep others from being extracted.
func TestWhatIsNotFollowedTakesNoPlace(t *testing.T) {
	needRoot(t)
	store := startContent(t, true)
	needs, cfg := quietNeeds(t), testConfig(t)
	needs.Content, cfg.Applies = store.client(), 1
	s := openTest(t, cfg, needs)
	var layers []unpack.Layer
	var archives [][]byte
	for _, ingest := range []string{"slow", "fast"} {
		b := difftest.Tar(difftest.File(ingest, "x"))
		d := digest.FromBytes(b)
		layers = append(layers, unpack.Layer{
			Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))}, DiffID: d, Ingest: ingest,
		})
		archives = append(archives, b)
	}
	a := &arrivingLayer{t: t, store: store, blobs: store.client().In(one)}
	slow := a.writer("slow")
	a.write(slow, archives[0][:600])
	service, err := s.Unpacking().In(one, Overlayfs)
	must(t, err)
	ended := make(chan error, 1)
	go func() {
		ended <- unpack.Wait(service.Unpack(t.Context(), layers), func(p unpack.Progress) {
			if p.Layer == 1 {
				a.read.Store(p.Done)
			}
		})
	}()
	fast := a.writer("fast")
	a.write(fast, archives[1])
	must(t, fast.Commit(t.Context(), 0, layers[1].Digest, nil))
	a.followed(len(archives[1]))
	a.write(slow, archives[0][600:])
	must(t, slow.Commit(t.Context(), 0, layers[0].Digest, nil))
	must(t, <-ended)
}
