// Package eventbus carries the suite's events: one durable stream, told to
// containerd's clients by its Events service and to plugins by NATS.
//
// The stream is a [journal.Journal]. A NATS server is embedded that carries what
// is said and keeps nothing: JetStream is off. It listens nowhere: NATS listens
// only on TCP, and a node's events must not leave the node. [Bus.ServeNATS]
// accepts on a socket that the caller made and hands each connection to the
// server through its in-process door, with the name and the secret of the role
// that the peer's uid has. A uid without a role is closed at once.
//
// [Bus.ServeTCP] does the same where a plugin is known by a key instead of a uid.
//
// An event comes by gRPC, by ttrpc from a shim, or by NATS as a request on
// gantry.bus.v1.publish.…, and is answered when it is on the disk. Then it is told
// to subscribers, and on gantry.v1.<namespace>.<noun>.<verb>, where nobody
// publishes but the bus, to who listens there just now.
//
// Daemons, root and the bus itself are in one account of the server, the node's.
// Each plugin has an account of its own. Into it come the subjects that the config
// grants, and nothing else; out of it go its answers to the gates that it was
// granted. Its requests to read the past are answered by a connection of the bus
// in that account. So whatever subject a plugin makes up, also as the place for an
// answer, ends in its own account.
//
// [Bus.Forward] tells a fleet's NATS, to which the server is connected as a leaf
// node, of every event. It publishes in a third kind of account, in which there
// is nobody else: nothing comes back from the fleet but acknowledgements.
//
// The past is read by asking for the events behind a cursor, with a wait for
// those to come; package eventnats says how. The reader keeps the cursor, and the
// bus nothing for a reader that is gone.
//
// # On disk
//
//	<root>/stream/       the journal; its package says what is in it
//	<root>/leaf.cursor   of the last event that the fleet has: "<epoch>/<sequence>";
//	                     leaf.cursor.new while it is written
//	<root>/lock          held while the bus is open
//
// # What survives a crash
//
// Every event that was acknowledged, in its place: it is synced before anybody is
// answered or told.
//
// # What a damage does
//
// It is logged, and every subscriber whose next event it took is told a gap;
// nobody is told another event in its place, or nothing. Which it is depends on
// what is missing:
//
//   - Something in the middle: the rest is told. A reader that comes to the hole
//     is told a gap from there to the next event.
//   - What was being written when the power failed: it is cut off, and nobody is
//     told of it. Nothing acknowledged is lost then. Damage to the very last write
//     looks the same.
//   - The newest file, or what says which stream it is: everything is put aside,
//     and a new stream made, of another epoch. What the outboxes still hold is
//     told in it.
//
// A disk that is full or cannot be written is no damage: what is kept can be read,
// Publish fails, and the publishers keep their events. They are taken again when
// the disk takes them; nothing has to be restarted.
//
// # Locking
//
// window.mu guards the latest events in memory, and readers.mu who reads. Both
// are leaves. Nothing else is shared.
//
// # Limits
//
// The stream: an age and a size from the config; the oldest go first. An event:
// 1 MiB, and 48 KiB for its names. Identical ids collapse within an hour, if there
// are not more than 65,536 of them. The window: 1,024 events or 4 MiB; a subscriber
// that is further behind reads the journal, 64 events or 64 KiB at a time, and one
// whose next event is no longer kept is told so and ended. What a subscriber that
// does not go on holds is no more than that. For a connection of NATS that is not
// read 2.5 MiB wait; what comes then is not told to it, and it is closed after 10
// seconds. A read by NATS: 256 events or 256 KiB, and 25 seconds of waiting.
// Reads at once: 2,048 of operators, and 64 of each plugin; one more is refused.
// Named readers that are remembered: 64 of each plugin; the one seen longest ago
// is forgotten for a new one. Connections: 1,024, and 16 of each plugin, and 256
// by TCP; one more is closed. A plugin's have 64 subscriptions each; a read
// of which it says more than 64 KiB is refused. There are at most 64 plugins.
//
// # Events
//
// It publishes none of its own.
//
// # Needs
//
// Nothing: no capability, and no network unless the config asks for it.
package eventbus
