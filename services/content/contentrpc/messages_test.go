package contentrpc

import (
	"bytes"
	"math"
	"testing"

	api "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// pieces are b as it may arrive.
func pieces(b []byte, size int) mem.BufferSlice {
	var s mem.BufferSlice
	for size = max(size, 1); len(b) > size; b = b[size:] {
		s = append(s, mem.SliceBuffer(b[:size]))
	}
	return append(s, mem.SliceBuffer(b))
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// odd are messages that nobody sends.
func odd() [][]byte {
	tag := func(n protowire.Number, typ protowire.Type) []byte { return protowire.AppendTag(nil, n, typ) }
	data := func(n protowire.Number, s string) []byte {
		return protowire.AppendString(tag(n, protowire.BytesType), s)
	}
	group := append(append(tag(9, protowire.StartGroupType), data(6, "in a group")...), tag(9, protowire.EndGroupType)...)
	return [][]byte{
		nil,
		bytes.Join([][]byte{data(6, "one"), data(2, "two"), data(6, "three"), data(2, "four")}, nil),
		append(data(6, "data"), data(77, "unknown")...),
		append(tag(6, protowire.VarintType), 7),
		append(tag(2, protowire.Fixed32Type), 1, 2, 3, 4),
		append(tag(6, protowire.BytesType), 0xff, 0xff, 0xff, 0xff, 0x0f, 'x'),
		append(tag(2, protowire.BytesType), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01),
		append(append(tag(1, protowire.VarintType), 5), 0xff),
		group, group[:len(group)-1], tag(9, protowire.EndGroupType),
		data(2, "\xff not UTF-8"), data(0, "no such field"),
	}
}

func FuzzWriteRequest(f *testing.F) {
	for _, m := range []*api.WriteContentRequest{
		{},
		{Action: api.WriteAction_WRITE, Offset: 1 << 40, Data: []byte("some data")},
		{Action: api.WriteAction_COMMIT, Ref: "ref", Total: -1, Expected: "sha256:x", Offset: math.MaxInt64, Labels: map[string]string{"a": "b", "c": ""}},
		{Ref: "ref", Data: bytes.Repeat([]byte("x"), 300), Labels: map[string]string{"": ""}},
	} {
		f.Add(encode(f, m), 7)
	}
	for _, b := range odd() {
		f.Add(b, 3)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		var got writeRequest
		got.Ref, got.Data, got.Labels = "of before", []byte("of before"), map[string]string{"of": "before"}
		var want api.WriteContentRequest
		err, wantErr := got.Unmarshal(pieces(b, size)), proto.Unmarshal(b, &want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got %v, want %v", b, err, wantErr)
		}
		if err == nil && !proto.Equal(&got.WriteContentRequest, &want) {
			t.Errorf("%q: got %v, want %v", b, &got.WriteContentRequest, &want)
		}
		got.free()
	})
}

func FuzzReadResponse(f *testing.F) {
	for _, m := range []*api.ReadContentResponse{
		{}, {Offset: 5}, {Data: []byte("data")}, {Offset: -1, Data: bytes.Repeat([]byte("x"), 300)},
	} {
		f.Add(encode(f, m), 2, 400)
		f.Add(encode(f, m), 100, 3)
	}
	for _, b := range odd() {
		f.Add(b, 3, 10)
	}
	f.Fuzz(func(t *testing.T, b []byte, size, room int) {
		got := readInto{to: make([]byte, max(0, min(room, 1<<16)))}
		var want api.ReadContentResponse
		err, wantErr := got.Unmarshal(pieces(b, size)), proto.Unmarshal(b, &want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got %v, want %v", b, err, wantErr)
		}
		if fits := want.Data[:min(len(want.Data), len(got.to))]; err == nil && !bytes.Equal(got.to[:got.n], fits) {
			t.Errorf("%q: got %q, want %q", b, got.to[:got.n], fits)
		}
	})
}

func TestReadResponseIsProtobufs(t *testing.T) {
	p := &pool{size: small}
	for _, offset := range []int64{0, 1, 127, 128, 1 << 40, math.MaxInt64, -1} {
		for _, size := range []int{0, 1, 127, 128, small} {
			b := p.Get(size)
			for i := range *b {
				(*b)[i] = byte(i)
			}
			want := encode(t, &api.ReadContentResponse{Offset: offset, Data: *b})
			m := newReadResponse(offset, mem.NewBuffer(b, p))
			sent, err := m.Marshal()
			if err != nil || !bytes.Equal(sent.Materialize(), want) {
				t.Errorf("%d bytes at %d: %v, other bytes than protobuf's", size, offset, err)
			}
			sent.Free()
		}
	}
}

// TestMessagesWithoutTheCodec has gRPC's own codec take them for what they
// embed.
func TestMessagesWithoutTheCodec(t *testing.T) {
	want := &api.WriteContentRequest{Ref: "r", Data: []byte("data"), Labels: map[string]string{"a": "b"}}
	var got writeRequest
	if err := proto.Unmarshal(encode(t, want), &got); err != nil || !proto.Equal(&got.WriteContentRequest, want) {
		t.Errorf("got %v, %v", &got.WriteContentRequest, err)
	}
	p := &pool{size: small}
	b := p.Get(4)
	copy(*b, "data")
	m := newReadResponse(3, mem.NewBuffer(b, p))
	if b := encode(t, m); !bytes.Equal(b, encode(t, &api.ReadContentResponse{Offset: 3, Data: []byte("data")})) {
		t.Errorf("a response is %q", b)
	}
}

func BenchmarkWriteRequest(b *testing.B) {
	m := encode(b, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: 1 << 30, Data: make([]byte, 1<<20)})
	received := pieces(m, 16<<10)
	for name, unmarshal := range map[string]func() error{
		"protobuf": func() error {
			buf := received.MaterializeToBuffer(mem.DefaultBufferPool())
			defer buf.Free()
			return proto.Unmarshal(buf.ReadOnlyData(), new(api.WriteContentRequest))
		},
		"ours": func() error {
			var req writeRequest
			defer req.free()
			return req.Unmarshal(received)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(m)))
			for b.Loop() {
				if err := unmarshal(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
