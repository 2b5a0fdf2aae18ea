package contentd

import (
	"github.com/gantryd/gantry/services/gated"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// behind puts the records behind the gate. What is written of an ingest past it
// takes something from one, and refers to nothing.
func behind(records gated.Records, gate *gc.Gate) gated.DB {
	return gated.DB{
		Records: records, Gate: gate, Node: nodeAt,
		Free: func(n gc.Node) bool { return n.Type == lease.TypeIngests },
	}
}

// nodeAt returns the node that a record is of, or decides about.
func nodeAt(key []byte) (gc.Node, bool) {
	parts := kv.Parts(key)
	switch {
	case parts[0] == "blob" && len(parts) == 3:
		return node(parts[1], lease.TypeContent, parts[2]), true
	case parts[0] == "ingest" && len(parts) == 3:
		return node(parts[1], lease.TypeIngests, parts[2]), true
	case parts[0] == "member" && len(parts) == 6:
		return node(parts[1], parts[2], parts[3]), true
	}
	return gc.Node{}, false
}

func node(ns, of, id string) gc.Node {
	return gc.Node{Namespace: ns, Resource: lease.Resource{Type: of, ID: id}}
}

// note notes an object that the caller says exists, and that it does not write.
func (c *scoped) note(r lease.Resource) { c.gate.Note(gc.Node{Namespace: c.scope.Name, Resource: r}) }
