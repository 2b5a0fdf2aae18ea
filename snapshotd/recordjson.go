package snapshotd

import (
	"encoding/json"

	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/snapshot"
)

// UnmarshalJSON reads what json.Marshal makes of a record, the short way. Whatever
// else it is given it leaves to package json.
func (r *record) UnmarshalJSON(p []byte) error {
	var fast record
	s := kv.ReadPlain(p)
	s.Skip(`{"id":`)
	fast.ID = uint64(s.Number())
	s.Skip(`,"kind":`)
	fast.Kind = snapshot.Kind(s.Text())
	if s.Next(`,"parent":`) {
		fast.Parent = string(s.Text())
	}
	if s.Next(`,"labels":{`) {
		fast.Labels = s.Pairs()
	}
	s.Skip(`,"created":`)
	fast.Created = s.Time()
	s.Skip(`,"updated":`)
	fast.Updated = s.Time()
	if s.Next(`,"inodes":`) {
		fast.Inodes = s.Number()
	}
	if s.Next(`,"size":`) {
		fast.Size = s.Number()
	}
	if s.Next(`,"onto":`) {
		fast.Onto = uint64(s.Number())
	}
	if s.Next(`,"key":`) {
		fast.Key = string(s.Text())
	}
	s.Skip(`}`)
	if s.Done() {
		*r = fast
		return nil
	}
	type plain record
	return json.Unmarshal(p, (*plain)(r))
}
