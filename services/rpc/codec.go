package rpc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// A Message is one that makes and reads protobuf's bytes by itself, to spare the
// copies that package proto makes of large fields. Every server and connection
// of this package takes one in the place of a generated message.
type Message interface {
	// Marshal returns the buffers to send, with a reference to each.
	Marshal() (mem.BufferSlice, error)

	// Unmarshal reads buffers, of which it takes references to those that it
	// keeps.
	Unmarshal(mem.BufferSlice) error
}

// codec is protobuf's, but for those that have their own.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(Message); ok {
		return m.Marshal()
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(Message); ok {
		return m.Unmarshal(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Name says protobuf: that is what the bytes are.
func (codec) Name() string { return proto.Name }

// A frame is a message nobody has looked into.
type frame struct{ data mem.BufferSlice }

// Marshal implements [Message]. The reference is the one that Unmarshal took.
func (f *frame) Marshal() (mem.BufferSlice, error) { return f.data, nil }

// Unmarshal implements [Message].
func (f *frame) Unmarshal(data mem.BufferSlice) error {
	data.Ref()
	f.data = data
	return nil
}
