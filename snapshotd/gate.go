package snapshotd

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/gated"
	"github.com/gantryd/gantry/services/gc"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/snapshotd/mounter"
)

// behind puts the records behind the gate at which writers wait while garbage is
// found.
func behind(records gated.Records, gate *gc.Gate) gated.DB {
	return gated.DB{Records: records, Gate: gate, Node: nodeAt}
}

// nodeAt returns the node that a record is of, or decides about.
func nodeAt(key []byte) (gc.Node, bool) {
	parts := kv.Parts(key)
	switch {
	case parts[0] == "snapshot" && len(parts) == 4:
		return shelf{parts[1], parts[2]}.node(parts[3]), true
	case parts[0] == mounter.Rows && len(parts) == 3:
		return gc.Node{Namespace: parts[1], Resource: mounter.Resource(parts[2])}, true
	case parts[0] == "member" && len(parts) == 6:
		return gc.Node{Namespace: parts[1], Resource: lease.Resource{Type: parts[4], ID: parts[5]}}, true
	}
	return gc.Node{}, false
}

// node is a snapshot as the collector names it.
func (h shelf) node(name string) gc.Node {
	return gc.Node{Namespace: h.namespace, Resource: lease.Resource{Type: memberType(h.snapshotter), ID: name}}
}

// shelfOf returns the shelf of a node, if that is a snapshot.
func shelfOf(n gc.Node) (shelf, bool) {
	snapshotter, ok := strings.CutPrefix(n.Type, memberType(""))
	return shelf{snapshotter, n.Namespace}, ok && snapshotter != ""
}

// touch notes a snapshot that the caller says exists, and that it does not
// write.
func (n snapshots) touch(name string) { n.s.gate.Note(n.node(name)) }

// find is get for who may tell others that the snapshot exists: one that is being
// swept does not.
func (n snapshots) find(tx *kv.Tx, name string) (record, error) {
	if n.s.gate.Hidden(n.node(name)) {
		return record{}, fmt.Errorf("snapshot %s: %w", name, errdefs.ErrNotFound)
	}
	return n.get(tx, name)
}
