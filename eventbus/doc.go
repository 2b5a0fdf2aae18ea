// Package eventbus carries the suite's events: one durable stream, told to
// containerd's clients by its Events service and to plugins by NATS.
//
// A NATS server with JetStream is embedded. It listens nowhere: NATS listens
// only on TCP, and a node's events must not leave the node. [Bus.ServeNATS]
// accepts on a socket that the caller made and hands each connection to the
// server through its in-process door, with the name and the secret of the role
// that the peer's uid has.
//
// # On disk
//
//	<root>/jetstream/    the server's own store: the stream EVENTS
//	<root>/lock          held while the bus is open
//
// The stream's metadata has its epoch, made when the stream was.
//
// # What survives a crash
//
// Every event that was acknowledged, in its place: the server syncs each before
// it answers. If the stream itself is lost the next one has another epoch, so
// that no cursor of the old means something in the new.
//
// # Locking
//
// window.mu guards the latest events in memory and is a leaf. Nothing else is
// shared.
//
// # Limits
//
// The stream: an age and a size from the config; the oldest go first. An event:
// 1 MiB. Identical ids collapse within an hour. The window: 1,024 events or 4
// MiB; a subscriber that is further behind reads the stream again, 256 events at
// a time, and one whose next event is no longer kept is told so and ended.
// Connections: 1,024; one more is closed.
//
// # Events
//
// It publishes none of its own.
//
// # Needs
//
// Nothing: no capability and no network.
package eventbus
