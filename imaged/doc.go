// Package imaged keeps images, leases and namespaces: the names of what other
// daemons own, what protects it for a while, and for whom it is kept.
//
// # On disk
//
//	<root>/db    a database of package kv; its keys, with parts joined by NUL:
//
//	image <namespace> <name>            an image
//	lease <namespace> <id>              a lease and its generation
//	lease.generation                    the last number that was given
//	lease.expiry <time> <namespace> <id>   empty; leases in order of their end
//	lease.ended <number>                a lease whose members are not all dropped, and who has to
//	member <namespace> <id> <generation> <name>   empty; an image of a lease
//	namespace <name>                    the labels of a namespace that was created
//
// # Leases
//
// A lease is a row here; that an object belongs to it is a row of the daemon
// that has the object, which asks [Store.Lookup] for the generation before it
// writes. A generation is never given twice, not even by a database that was
// restored from an old backup: it is the time, or one more than the last. So a
// row of a lease that ended means nothing, whether it is gone yet or not, and
// to end a lease no daemon need be there. [Store.Forget] tells each owner later,
// again and again until it has answered.
//
// A lease past its time is treated as absent from that moment. [Store.Expire]
// removes what is left of it. An image past its time stays until a collection
// takes it.
//
// There is no garbage collection yet: a sync delete returns when the record is
// gone.
//
// # Namespaces
//
// Who keeps records in a namespace is asked, not remembered. List leaves out
// what a daemon that does not answer may have; Delete refuses.
//
// # What survives a crash
//
// Whatever was acknowledged, and the event that tells of it. A namespace with
// more than 256 leases is deleted in several transactions: after a crash it may
// have lost some of its leases.
//
// # Locking
//
// There is no lock: an update of package kv is the atom. No update waits for
// another daemon.
//
// # Limits
//
// An image's name has at most 4,096 bytes, a lease's id 1,024, a record 256 KiB
// with all its labels and annotations. An owner has 10 s to add, remove or list
// members, a holder 1 s to answer a List and 10 s for a Delete. An ended lease
// takes one row until its owners have answered; a new attempt is made after at
// most 30 s.
//
// # Events
//
// In the transaction of the change, with the namespace they are about:
// /images/create, /images/update, /images/delete, /namespaces/create,
// /namespaces/update, /namespaces/delete. Leases have none.
//
// # Needs
//
// A directory. No capability, no mount, no kernel feature.
package imaged
