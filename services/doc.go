// Package services is the map of the suite. It holds no code; the packages
// below it do.
//
// gantry does what containerd does, in processes that need not stand or fall
// together. Clients of containerd find containerd's own API on one socket;
// behind it are daemons, each of which owns its state and restarts alone.
//
//	ctr, nerdctl, dockerd, buildkitd, gantryctl
//	     │  containerd's gRPC API, /run/gantry/gantry.sock
//	     ▼
//	  gatewayd ──── passes each call on, unread, to the daemon that owns it
//	     │
//	     ├─▶ contentd    blobs
//	     ├─▶ snapshotd   snapshots; applies and makes layers
//	     ├─▶ imaged      images, leases, namespaces
//	     ├─▶ taskd       containers and tasks ──▶ a shim beside each container
//	     └─▶ eventbus    events  ◀── every daemon, and every shim
//	              │ NATS, /run/gantry/nats.sock
//	              ▼
//	           plugins
//
// # Daemons
//
// [suite.Daemons] says which daemon answers what; suite is that table and the
// names of the sockets. A daemon listens on /run/gantry/<daemon>.sock and keeps
// its state in /var/lib/gantry/<daemon>, which nobody else opens. The others
// have names of things and ask.
//
// Who may call whom is the table [rpc.Rules], held against the credentials of
// the peer; what it does not name is denied. In short: the gateway calls
// everybody's public services; imaged calls contentd, snapshotd and taskd;
// snapshotd and taskd read and write blobs; everybody asks imaged about leases
// and namespaces, and tells eventbus what happened.
//
// Plugins are none of these: the suite does without them. Two come with it,
// [suite.Plugins]. netd connects containers to CNI networks: it answers a gate that
// containers wait at, and hears on the bus which tasks have ended. dnsd answers for
// the names of containers that netd connected, and may ask taskd which there are.
//
// There is no order of starting. A call to a daemon that is away waits a
// moment, and is then unavailable.
//
// # Nouns
//
// What the daemons agree on is one package per noun: the contract in plain Go,
// with every outcome named. Beside it are its promises, as a test suite with a
// store in memory that keeps them (<noun>test), and its wire, both ends
// (<noun>rpc).
//
//	content    blobs, named by their digest        contentd
//	snapshot   stacks of directory trees           snapshotd
//	diff       layers, applied and made            snapshotd
//	activation mounts that are made for a caller   snapshotd
//	unpack     images: layers into snapshots       snapshotd
//	image      names for content                   imaged
//	lease      what keeps objects for a while      imaged; members with their owners
//	namespace  tenants                             imaged; contentd, snapshotd and taskd hold
//	container  what a container is to be           taskd
//	task       containers that run                 taskd
//	runner     a container, seen from beside it    the shim
//	gate       whether a container may start       plugins; taskd asks
//	event      what became true, in order          eventbus
//	fsck       whether what is kept is whole       contentd
//	backup     records, copied and put back        contentd
//	gc         what nobody refers to, and goes     every owner; imaged coordinates
//
// Smaller words that they share are ident, idmap, label, filter, mount, network
// and typed.
//
// # The kit
//
// Every daemon stands on the same few packages: daemon (from arguments and
// signals to a served socket and back), rpc (servers, clients, peers, errors
// across a socket), kv (records that are durable when a call returns), outbox
// (events in the transaction of the change they report), fdpass (open files
// across a socket), detached (mounts with a container's ids, attached nowhere).
//
// Bytes of blobs do not cross gRPC where both ends are on one machine: contentd
// hands out files on [suite.BlobsSocket], to those whom the table lets, and
// everybody falls back to gRPC where there are none.
//
// # Where to read on
//
// content/content.go, content/contenttest, contentd/doc.go, contentd's store,
// cmd/gantryd/contentd.go, daemon/serve.go. What may import what is
// law_test.go; how the code reads is held by house_test.go; what was decided
// against is in decisions.md.
//
// [rpc.Rules]: https://pkg.go.dev/github.com/gantryd/gantry/services/rpc#Rules
// [suite.BlobsSocket]: https://pkg.go.dev/github.com/gantryd/gantry/services/suite#BlobsSocket
// [suite.Daemons]: https://pkg.go.dev/github.com/gantryd/gantry/services/suite#Daemons
package services
