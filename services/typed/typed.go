// Package typed holds values whose type somebody else knows: runtime options,
// OCI specs, container extensions. The suite stores and forwards them and does
// not look inside.
package typed

// A Value is bytes and the name of what they encode, as protobuf's Any. A nil
// *Value is an absent one.
type Value struct {
	URL  string `json:"url"`  // containerd's bare form, e.g. "containerd.runc.v1.Options"
	Data []byte `json:"data"` // in the encoding that goes with URL: protobuf or JSON
}
