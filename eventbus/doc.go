// Package eventbus carries the suite's events: one durable stream, told to
// containerd's clients by its Events service and to plugins by NATS.
//
// A NATS server with JetStream is embedded. It listens nowhere: NATS listens
// only on TCP, and a node's events must not leave the node. [Bus.ServeNATS]
// accepts on a socket that the caller made and hands each connection to the
// server through its in-process door, with the name and the secret of the role
// that the peer's uid has. A uid without a role is closed at once.
//
// [Bus.ServeTCP] does the same where a plugin is known by a key instead of a uid.
//
// Daemons, root and the bus itself are in one account of the server, the node's,
// with the stream. Each plugin has an account of its own, without JetStream. Into
// it come the subjects that the config grants, and nothing else; out of it go its
// answers to the gates that it was granted. Its requests to read the past are
// answered by a connection of the bus in that account. So whatever subject a
// plugin makes up, also as the place for an answer, ends in its own account.
//
// [Bus.Forward] tells a fleet's NATS, to which the server is connected as a leaf
// node, of every event. It publishes in a third kind of account, in which there
// is nobody else: nothing comes back from the fleet but acknowledgements.
//
// The past is read by asking for the events behind a cursor, with a wait for
// those to come; package eventnats says how. The reader keeps the cursor, and
// nobody but the bus itself touches JetStream: a consumer of the server's would
// write wherever its reader asks it to, and keep a place for one that is gone.
//
// # On disk
//
//	<root>/jetstream/    the server's own store: the stream EVENTS of the
//	                     account GANTRY
//	<root>/mark          what the stream is known to have: a sequence, and how
//	                     long its last file was when it was closed or found
//	<root>/damaged-…/    a store that could not be opened: the first and the two
//	                     latest
//	<root>/leaf.cursor   of the last event that the fleet has: "<epoch>/<sequence>";
//	                     leaf.cursor.new while it is written
//	<root>/lock          held while the bus is open
//
// The stream's metadata has its epoch, made when the stream was.
//
// # What survives a crash
//
// Every event that was acknowledged, in its place: the server syncs each before
// it answers. Open reads every message and checks its sum.
//
// # What a damage does
//
// It is logged, and every subscriber whose next event it took is told a gap;
// nobody is told another event in its place, or nothing. Which it is depends on
// what is missing:
//
//   - Something in the middle: the rest is told. A reader that comes to the hole
//     is told a gap from there to the next event.
//   - The end, although it was there when the stream was closed, marked (every
//     two seconds) or found: what is left is told, under a new epoch, because
//     its sequences are going to be those of other events. Subscribers are told
//     a gap and go on with the oldest. The same comes of a power cut in the
//     middle of a write: nothing acknowledged is lost then.
//   - All of it, or what says what it is: the store is put aside, and a new
//     stream made, of another epoch. What the outboxes still hold is told in it.
//     To open the old one, stop the bus and put it in the new one's place.
//
// A disk that is full or cannot be written is no damage: Open fails, or what is
// kept can be read and Publish fails, and the publishers keep their events.
// Watch ends the process when the store has failed and could work again.
//
// # Locking
//
// window.mu guards the latest events in memory, and readers.mu who reads. Both
// are leaves. Nothing else is shared; Bus.mark belongs to Open, then to Watch,
// then to Close.
//
// # Limits
//
// The stream: an age and a size from the config; the oldest go first. An event:
// 1 MiB. Identical ids collapse within an hour. The window: 1,024 events or 4
// MiB; a subscriber that is further behind reads the stream again, 64 events or 64
// KiB at a time, two subscribers at once, and one whose next event is no longer
// kept is told so and ended. What a subscriber that does not go on holds is no
// more than that. For a connection of NATS that is not read 2.5 MiB wait; what
// comes then is not told to it, and it is closed after 10 seconds. A read by
// NATS: 256 events or 256 KiB, and 25 seconds of waiting. Reads at once: 2,048,
// and 64 of each plugin; one more is refused. Named readers that are remembered:
// 64 of each plugin; the one seen longest ago is forgotten for a new one.
// Connections: 1,024, and 32 of each plugin, and 256 by TCP; one more is closed.
// A plugin's have 256 subscriptions each and say at most 64 KiB at once. There
// are at most 64 plugins.
//
// # Events
//
// It publishes none of its own.
//
// # Needs
//
// Nothing: no capability, and no network unless the config asks for it.
package eventbus
