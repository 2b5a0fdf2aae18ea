package contentrpc

import (
	api "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/services/rpc"
)

// The messages that carry blobs, in the place of the generated ones: their data
// stays where it was received, or is sent from where it was read. On the wire
// they are the same, and a server or a connection without package rpc's codec
// takes them for what they embed.
var (
	_ rpc.Message = (*writeRequest)(nil)
	_ rpc.Message = (*readResponse)(nil)
	_ rpc.Message = (*readInto)(nil)
)

// The fields of data.
const (
	writeData = 6
	readData  = 2
)

// A writeRequest has its data until the next Unmarshal, or free.
type writeRequest struct {
	api.WriteContentRequest
	received mem.Buffer
}

// Marshal implements [rpc.Message].
func (m *writeRequest) Marshal() (mem.BufferSlice, error) {
	b, err := proto.Marshal(&m.WriteContentRequest)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

// Unmarshal implements [rpc.Message].
func (m *writeRequest) Unmarshal(data mem.BufferSlice) error {
	m.free()
	m.received = data.MaterializeToBuffer(mem.DefaultBufferPool())
	value, rest := cut(m.received.ReadOnlyData(), writeData)
	if err := proto.Unmarshal(rest, &m.WriteContentRequest); err != nil {
		return err
	}
	m.Data = value
	return nil
}

func (m *writeRequest) free() {
	if m.received != nil {
		m.received.Free()
		m.received, m.Data = nil, nil
	}
}

// A readResponse is sent once: its buffer goes back to its pool then.
type readResponse struct {
	api.ReadContentResponse
	data mem.Buffer // Data is in it
}

func newReadResponse(offset int64, data mem.Buffer) *readResponse {
	m := &readResponse{data: data}
	m.Offset, m.Data = offset, data.ReadOnlyData()
	return m
}

// Marshal implements [rpc.Message].
func (m *readResponse) Marshal() (mem.BufferSlice, error) {
	var head []byte
	if m.Offset != 0 {
		head = protowire.AppendTag(head, 1, protowire.VarintType)
		head = protowire.AppendVarint(head, uint64(m.Offset))
	}
	if len(m.Data) == 0 {
		m.data.Free()
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, readData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(m.Data)))
	return mem.BufferSlice{mem.SliceBuffer(head), m.data}, nil
}

// Unmarshal implements [rpc.Message].
func (m *readResponse) Unmarshal(data mem.BufferSlice) error {
	return proto.Unmarshal(data.Materialize(), &m.ReadContentResponse)
}

// A readInto puts the data of a ReadContentResponse where it is wanted.
type readInto struct {
	api.ReadContentResponse // of a connection without the codec
	to                      []byte
	n                       int // bytes that were put there
}

// Marshal implements [rpc.Message].
func (m *readInto) Marshal() (mem.BufferSlice, error) {
	b, err := proto.Marshal(&m.ReadContentResponse)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

// Unmarshal implements [rpc.Message].
func (m *readInto) Unmarshal(data mem.BufferSlice) error {
	m.n = 0
	if skip := head(data); skip > 0 {
		for _, b := range data {
			p := b.ReadOnlyData()
			skipped := min(skip, len(p))
			skip -= skipped
			m.n += copy(m.to[m.n:], p[skipped:])
		}
		return nil
	}
	received := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer received.Free()
	value, rest := cut(received.ReadOnlyData(), readData)
	m.n = copy(m.to, value)
	return proto.Unmarshal(rest, &m.ReadContentResponse)
}

// head returns how many bytes come before the data of a ReadContentResponse as
// servers send it, an offset or none and data to the end; 0 if it is another.
func head(data mem.BufferSlice) int {
	if len(data) == 0 {
		return 0
	}
	first := data[0].ReadOnlyData()
	at := 0
	num, typ, n := protowire.ConsumeTag(first)
	if n > 0 && num == 1 && typ == protowire.VarintType {
		at = n
		if _, n = protowire.ConsumeVarint(first[at:]); n < 0 {
			return 0
		}
		at += n
		num, typ, n = protowire.ConsumeTag(first[at:])
	}
	if n < 0 || num != readData || typ != protowire.BytesType {
		return 0
	}
	at += n
	size, n := protowire.ConsumeVarint(first[at:])
	if n < 0 || size != uint64(data.Len()-at-n) {
		return 0
	}
	return at + n
}

// cut takes a field of bytes out of a message, the last one if there are more,
// and returns the rest of it for package proto, which also judges what cannot
// be read.
func cut(b []byte, field protowire.Number) (value, rest []byte) {
	kept := 0
	for at := 0; at < len(b); {
		num, typ, n := protowire.ConsumeTag(b[at:])
		if n < 0 {
			break
		}
		m := protowire.ConsumeFieldValue(num, typ, b[at+n:])
		if m < 0 {
			break
		}
		if num == field && typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b[at+n:])
			rest = append(rest, b[kept:at]...)
			kept = at + n + m
		}
		at += n + m
	}
	return value, append(rest, b[kept:]...)
}
