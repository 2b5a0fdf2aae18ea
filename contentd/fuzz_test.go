package contentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/content/contentrpc"
	"github.com/gantryd/gantry/services/content/contenttest"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
	"github.com/gantryd/gantry/services/rpc/rpctest"
)

// FuzzWrite sends what the bytes say to a contentd and to a store in memory, both
// over the wire. They give the same answers, and every blob is what its digest
// says.
func FuzzWrite(f *testing.F) {
	for _, seed := range []string{
		"",
		"\x00\x01\x02\x03\x04\x05\x06\x07",
		"\x01\x00\x00\x30\x02\x00\x00\x00", // write, commit
		"\x01\x00\x00\x30\x03\x00\x00\x01\x01\x20", // write, close, open, write
		"\x01\x10\x00\x30\x02\x00\x40\x00\x06\x00\x00\x00\x01\x00\x10\x00",
		strings.Repeat("\x01\x02\x03\x04\x05", 20),
		strings.Repeat("\x01\x00\x00\x11\x02\x01\x01\x00\x05\x00\x00\x00", 6),
	} {
		f.Add([]byte(seed))
	}
	p := newPair(f)
	f.Fuzz(func(t *testing.T, b []byte) { p.compare(t, b) })
}

// TestRandomWritesAreAnsweredAlike is FuzzWrite with scripts long enough to get
// somewhere.
func TestRandomWritesAreAnsweredAlike(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	p := newPair(t)
	answers := map[string]int{}
	for range 80 {
		b := make([]byte, 4*(10+rnd.IntN(60)))
		for i := range b {
			b[i] = byte(rnd.UintN(256))
		}
		for line := range strings.SplitSeq(p.compare(t, b), "\n") {
			if !strings.HasPrefix(line, " ") {
				answers[line]++
			}
		}
	}
	for _, want := range []string{
		"COMMIT: <nil>", "COMMIT: failed precondition", "COMMIT: not found", "WRITE: <nil>", "WRITE: out of range",
		"WRITE: invalid argument", "STAT: <nil>", "STAT: already exists", "Abort: <nil>",
		"Status: <nil>", "the end",
	} {
		if answers[want] == 0 {
			t.Errorf("no answer was %q, of %v", want, answers)
		}
	}
}

// A pair is a contentd and a store in memory, both over the wire.
type pair struct {
	engine  *Store
	stores  []content.Stores
	clients []api.ContentClient
	runs    atomic.Int64
}

func newPair(t testing.TB) *pair {
	p := &pair{engine: openStore(t, testConfig(t), nil)}
	p.stores = []content.Stores{p.engine, contenttest.NewMemory(nil)}
	for _, s := range p.stores {
		p.clients = append(p.clients, api.NewContentClient(rpctest.Pipe(t, func(r grpc.ServiceRegistrar) {
			contentrpc.Register(r, s)
		})))
	}
	return p
}

// compare plays a script to both and returns what they said.
func (p *pair) compare(t *testing.T, script []byte) string {
	t.Helper()
	// Everything is new to a namespace, and bytes are of one run only.
	name := fmt.Sprintf("run%d", p.runs.Add(1))
	var said []string
	for i, c := range p.clients {
		d := dialog{c: c, name: name, script: bytes.NewReader(script), between: func() {
			p.engine.sweep(t.Context()) // so that neither has what the other has not
		}}
		d.run(t)
		said = append(said, d.said.String())
		for _, ns := range []string{name + ".1", name + ".2"} {
			checkBlobs(t, p.stores[i].In(namespace.Scope{Name: ns}))
		}
	}
	if said[0] != said[1] {
		t.Errorf("contentd says\n%s\nand the store in memory\n%s", said[0], said[1])
	}
	if left := len(p.engine.writers) + len(p.engine.pins); left > 0 {
		t.Errorf("%d refs are held or blobs pinned", left)
	}
	return said[0]
}

func checkBlobs(t *testing.T, s content.Store) {
	t.Helper()
	for info, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if _, err := content.ReadAll(t.Context(), s, info.Digest, 1<<20); err != nil {
			t.Errorf("ReadAll: %v", err)
		}
		if err := s.Delete(t.Context(), info.Digest); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	all, err := s.ListStatuses(t.Context())
	if err != nil {
		t.Fatalf("ListStatuses: %v", err)
	}
	for _, st := range all {
		if err := s.Abort(t.Context(), st.Ref); err != nil {
			t.Errorf("Abort: %v", err)
		}
	}
}

// A dialog is a client that does what the script says, four bytes at a time.
type dialog struct {
	c      api.ContentClient
	name   string
	script *bytes.Reader

	between func() // steps
	stream  api.Content_WriteClient
	cancel  context.CancelFunc
	last    *api.WriteContentResponse
	known   []digest.Digest // that were committed
	said    strings.Builder
}

func (d *dialog) run(t *testing.T) {
	defer d.close()
	for step := [4]byte{}; ; {
		if _, err := io.ReadFull(d.script, step[:]); err != nil || d.said.Len() > 1<<14 {
			return
		}
		d.between()
		ctx := rpc.WithScope(t.Context(), namespace.Scope{Name: fmt.Sprintf("%s.%d", d.name, 1+step[1]>>7)})
		ref := fmt.Sprintf("r%d", step[1]>>6&1)
		switch step[0] % 8 {
		case 0, 1, 2, 3, 4:
			d.write(ctx, ref, step)
		case 5:
			d.close()
		case 6:
			_, err := d.c.Abort(ctx, &api.AbortRequest{Ref: ref})
			d.say("Abort", err)
		case 7:
			d.ask(ctx, ref, step)
		}
	}
}

func (d *dialog) say(what string, err error) {
	fmt.Fprintf(&d.said, "%s: %v\n", what, errdefs.Resolve(err))
}

// digest chooses one: of what was written, of what was committed, or of neither.
func (d *dialog) digest(b byte) digest.Digest {
	switch b % 8 {
	case 1:
		if d.last != nil {
			return digest.Digest(d.last.Digest)
		}
	case 2:
		if n := len(d.known); n > 0 {
			return d.known[int(b/8)%n]
		}
	case 3:
		return digest.FromString("never written")
	case 4:
		return "sha256:no"
	case 5:
		return digest.SHA512.FromString(d.name)
	}
	return ""
}

// ask does what needs no stream that stays.
func (d *dialog) ask(ctx context.Context, ref string, step [4]byte) {
	of := d.digest(step[2]).String()
	if step[2]%2 == 0 {
		of = d.digest(step[2]&^7 | 2).String() // one that was committed, if there is one
	}
	switch step[0] / 8 % 8 {
	case 0, 1:
		_, err := d.c.Delete(ctx, &api.DeleteContentRequest{Digest: of})
		d.say("Delete", err)
	case 2:
		labels := map[string]string{"a": fmt.Sprint(step[3] % 3), "b": strings.Repeat("v", int(step[3])*17)}
		mask := []*fieldmaskpb.FieldMask{nil, {Paths: []string{"labels"}}, {Paths: []string{"labels.a"}}, {Paths: []string{"size"}}}[step[3]/3%4]
		resp, err := d.c.Update(ctx, &api.UpdateRequest{Info: &api.Info{Digest: of, Labels: labels}, UpdateMask: mask})
		d.say("Update", err)
		d.tell(resp.GetInfo())
	case 3:
		resp, err := d.c.Info(ctx, &api.InfoRequest{Digest: of})
		d.say("Info", err)
		d.tell(resp.GetInfo())
	case 4:
		stream, err := d.c.List(ctx, &api.ListContentRequest{Filters: [][]string{nil, {"labels.a==1"}, {"size==0", "digest~=^sha512"}, {"labels.b,"}}[step[3]%4]})
		for err == nil {
			var resp *api.ListContentResponse
			resp, err = stream.Recv()
			for _, i := range resp.GetInfo() {
				d.tell(i)
			}
		}
		d.say("List", err)
	case 5:
		resp, err := d.c.Status(ctx, &api.StatusRequest{Ref: ref})
		d.say("Status", err)
		fmt.Fprintf(&d.said, "  %s offset %d total %d expected %s\n", resp.GetStatus().GetRef(), resp.GetStatus().GetOffset(), resp.GetStatus().GetTotal(), resp.GetStatus().GetExpected())
	case 6:
		resp, err := d.c.ListStatuses(ctx, &api.ListStatusesRequest{Filters: [][]string{nil, {"ref==r0"}, {"ref~=/r/"}, {"=="}}[step[3]%4]})
		d.say("ListStatuses", err)
		for _, st := range resp.GetStatuses() {
			fmt.Fprintf(&d.said, "  %s offset %d total %d expected %s\n", st.Ref, st.Offset, st.Total, st.Expected)
		}
	case 7:
		stream, err := d.c.Read(ctx, &api.ReadContentRequest{Digest: of, Offset: int64(int8(step[1])), Size: int64(int8(step[3]))})
		var got []byte
		for err == nil {
			var resp *api.ReadContentResponse
			resp, err = stream.Recv()
			got = append(got, resp.GetData()...)
		}
		d.say("Read", err)
		fmt.Fprintf(&d.said, "  %q\n", got)
	}
}

func (d *dialog) tell(i *api.Info) {
	fmt.Fprintf(&d.said, "  %s size %d labels %.99v\n", i.GetDigest(), i.GetSize(), i.GetLabels())
}

// write sends one message, the first of a stream or a later one.
func (d *dialog) write(ctx context.Context, ref string, step [4]byte) {
	req := &api.WriteContentRequest{
		Action:   []api.WriteAction{api.WriteAction_STAT, api.WriteAction_WRITE, api.WriteAction_WRITE, api.WriteAction_COMMIT}[step[0]%4],
		Expected: d.digest(step[2]).String(),
		Total:    []int64{0, 0, 0, 5, -1, 1 << 40}[step[2]/64%6],
	}
	if step[0]/8%8 == 7 {
		req.Action = 99
	}
	if n := int(step[3]) % 64; n > 0 && req.Action != api.WriteAction_STAT {
		req.Data = []byte(strings.Repeat(d.name+" ", n))
	}
	if d.stream == nil {
		inner, cancel := context.WithCancel(ctx)
		stream, err := d.c.Write(inner)
		if err != nil {
			cancel()
			d.say("Write", err)
			return
		}
		d.stream, d.cancel = stream, cancel
		if step[1]%16 != 15 {
			req.Ref = ref
		}
	}
	if d.last != nil {
		req.Offset = []int64{d.last.Offset, d.last.Offset, d.last.Offset, 0, d.last.Offset + 1, -1, d.last.Offset / 2, 1 << 50}[step[1]%8]
	}
	err := d.stream.Send(req)
	var resp *api.WriteContentResponse
	if err == nil || errors.Is(err, io.EOF) {
		resp, err = d.stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		d.said.WriteString("the end\n")
		d.stream, d.last = nil, nil
		d.cancel()
		return
	}
	d.say(req.Action.String(), err)
	if err != nil {
		d.stream, d.last = nil, nil
		d.cancel()
		return
	}
	fmt.Fprintf(&d.said, "  offset %d total %d digest %s\n", resp.Offset, resp.Total, resp.Digest)
	d.last = resp
	if req.Action == api.WriteAction_COMMIT {
		d.known = append(d.known, digest.Digest(resp.Digest))
	}
}

// close ends the stream and waits for the other end.
func (d *dialog) close() {
	if d.stream == nil {
		return
	}
	_ = d.stream.CloseSend()
	for err := error(nil); err == nil; {
		_, err = d.stream.Recv()
	}
	d.cancel()
	d.stream, d.last = nil, nil
}

// FuzzDigest: what passes for a digest is a path right below its algorithm's
// directory, and everything else is none.
func FuzzDigest(f *testing.F) {
	f.Add("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	f.Add("sha256:../../../../../../../../../../../../../../../../../../etc/passwd")
	f.Add("../x:" + strings.Repeat("a", 64))
	f.Add("sha512:" + strings.Repeat("0", 128))
	s := &Store{cfg: Config{Root: "/root"}}
	f.Fuzz(func(t *testing.T, text string) {
		d := digest.Digest(text)
		if err := content.CheckDigest(d); err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("CheckDigest(%q): %v", text, err)
			}
			return
		}
		path := s.path(d)
		dir, name := filepath.Split(path)
		if filepath.Clean(path) != path || dir != "/root/blobs/"+d.Algorithm().String()+"/" || strings.Trim(name, "0123456789abcdef") != "" {
			t.Errorf("%q becomes %q", text, path)
		}
	})
}

// FuzzRecord: a record that reads well names a file right in ingest/.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"file":"00112233445566778899aabbccddeeff","total":5}`))
	f.Add([]byte(`{"file":"../../../../etc/passwd/aaaaaaaaa"}`))
	f.Add([]byte(`{"file":"00112233445566778899AABBCCDDEEFF","saved":{"offset":-1}}`))
	f.Add([]byte(`null`))
	s := &Store{cfg: Config{Root: "/root"}}
	f.Fuzz(func(t *testing.T, value []byte) {
		rec, err := readIngest([]byte("key"), value)
		if err != nil {
			if !errors.Is(err, errdefs.ErrDataLoss) {
				t.Errorf("readIngest(%q): %v", value, err)
			}
			return
		}
		if path := s.ingestPath(rec.File); filepath.Dir(path) != "/root/ingest" {
			t.Errorf("%q becomes %q", value, path)
		}
		restore(rec.Saved, digest.SHA256)
	})
}
