package contentd

import (
	"encoding/json"

	"github.com/gantryd/gantry/services/kv"
)

// UnmarshalJSON reads what json.Marshal makes of a blob, at an eighth of the
// cost: a List reads ten thousand. Whatever else it is given it leaves to
// package json.
func (b *blob) UnmarshalJSON(p []byte) error {
	var fast blob
	s := kv.ReadPlain(p)
	s.Skip(`{"size":`)
	fast.Size = s.Number()
	s.Skip(`,"created":`)
	fast.Created = s.Time()
	s.Skip(`,"updated":`)
	fast.Updated = s.Time()
	if s.Next(`,"labels":{`) {
		fast.Labels = s.Pairs()
	}
	s.Skip(`}`)
	if s.Done() {
		*b = fast
		return nil
	}
	type plain blob
	return json.Unmarshal(p, (*plain)(b))
}
