// Package contentd keeps blobs in a directory and what namespaces know of them
// in a database.
//
// # On disk
//
//	<root>/blobs/<algorithm>/<hex>   whole blobs, 0444
//	<root>/ingest/<random>           blobs being written, 0600
//	<root>/quarantine/<algorithm>-<hex>-<random>   blobs whose bytes are wrong
//	<root>/db/                       records, see package kv
//	<root>/db.damaged-<time>/        records that could not be used, kept for people
//	<root>/backup/records-<time>.backup   the last two backups of the records
//	<root>/rebuild                   as long as records are to be made from blobs
//
// The file of a blob has an extended attribute user.gantry.<namespace> for each
// namespace that has it: since when, and the labels.
//
// The records, by key:
//
//	blob <namespace> <digest>                    size, times, labels
//	have <digest> <namespace>                    size
//	trash <digest>                               bytes that no namespace has
//	ingest <namespace> <ref>                     file, total, expected digest,
//	                                             times, hash of the bytes so far,
//	                                             whether its file was lent
//	lease <namespace> <lease> <generation> <type> <id>    members of a lease
//	member <namespace> <type> <id> <lease> <generation>   the same, the other way round
//	gc.hold                                      until when writers are held
//	outbox, outbox.next                          see package outbox
//
// # What survives a crash
//
// Everything that was acknowledged. A commit syncs the bytes, renames the file
// into blobs/, syncs that directory and then writes the record, so that a record
// is of whole bytes that are there. What a crash leaves in between, Open finds:
// a file in blobs/ without a record becomes trash, one in ingest/ without a
// record is removed, and a record without a file, or with one of another
// size, is reported, and absent for everybody until the bytes are committed
// again.
//
// A delete removes the record and, with the last one, makes the bytes trash, in
// one transaction; Collect removes the file later.
//
// A sweep of the collector's does the same to many blobs, without the event, in
// as many transactions as it takes. They come in an order in which nothing that
// is left refers to anything that is gone, wherever it stops. The deadline of a
// freeze is durable before writers are held, and a start before it goes on to
// hold them: what other owners sweep hangs on that.
//
// An ingest keeps the bytes that were synced when its writer was closed, and
// the state of their hash, so that a resume reads only what came after. The
// state is forgotten before the bytes it is of can change.
//
// An ingest whose file was lent has no such state. Who had the file may have it
// still, in another process, after this one has ended: whoever resumes the ingest
// takes the file back first, or starts over with another. See below.
//
// An ingest that is new is pending: its writer has its record in memory, and its
// file is one that no record names. It gets a record before it has more than a
// MiB, or when its writer is closed and it is to be resumed. Until then the end of
// the process is its end.
//
// A blob that a check found corrupt is moved to quarantine/, and its records
// stay: without a file it is absent, as above, until it is committed again.
//
// # What survives the loss of the database
//
// The blobs, in the namespaces that had them. A database that is damaged or gone
// is put aside and the last backup takes its place; then every file whose
// attributes tell of a namespace without a record gets one, with the label
// containerd.io/gc.root, so that nothing of it is collected before somebody has
// looked. A file without attributes, as on a file system that has none, becomes
// a blob of [Config].Recovered. What is lost: leases, ingests and labels newer
// than the backup, where no attribute has them; and a blob that was deleted since
// the backup is there again if its file still is, with its attribute.
//
// The attribute of the namespace that wrote the bytes is synced with them. That
// of one that borrowed them, or changed labels later, is not synced: a loss of
// power within seconds of it, and of the database, loses it.
//
// # What a blob costs
//
// A blob of at most a MiB that is written and committed in one go costs a sync of
// its file, one of the directory that gets its name, and one transaction, which
// is two syncs of the database's: its log's, and one of an empty file that Badger
// asks for. Blobs that are committed at the same time share the last two: eight
// writers of small blobs wait, for each, for one sync of their own and half of the
// others.
//
// The bytes of a large one are hashed and written at the same time, by two
// goroutines that a call of Write owns, and the disk is told to begin with every
// 8 MiB, so that the sync of the file at the end is a short one.
//
// # Locking
//
// A ref is held by its writer, in memory. A digest is locked, by one mutex of
// 256, while its file is put into place or taken away and the transaction goes
// with it, so that whoever commits a blob and whoever collects it exclude each
// other. Store.mu, writer.mu and the gate's mutex are leaves, but that a writer
// tells how far it is under writer.mu, and the lock of the fetches is below that.
// Order: digest, then the turn of a directory's sync or the gate, then the
// database's turn, then a leaf. No lock but the ref is held while a lease or a
// label is looked up, or another writer is waited for.
//
// The gate, see [gc.Gate], is shared by all who write a record or say that there
// is one, for the time of one call of the database and never for two, and is shut
// while the collector finishes. So they still share commits, and who waits at it
// may hold a digest: Freeze and Sweep want none. Deletes pass by. What a
// transaction behind the gate puts is noted by its key; who puts nothing and says
// "it exists" notes that by itself. Nothing of it costs more than a mutex while
// there is no cycle.
//
// A blob that a writer borrows from another namespace is pinned, in memory, and
// is not collected.
//
// # Sharing
//
// Namespaces share bytes, which are there once. Whether one gets a blob of
// another's without writing its bytes again is the policy, [Config].Sharing. With
// "isolated" the labels of the namespaces that have the blob say it, and imaged
// is asked for them each time a writer expects such a blob: for at most two
// seconds, and without an answer nothing is shared.
//
// # Waiting
//
// Of several writers that expect one digest, and may have each other's blobs,
// one brings the bytes and the others wait in Writer with nothing but their refs.
// Whom they wait for, and for how long, is [content.Fetches]: nobody can hold up
// another namespace for more than ten seconds, whatever it writes.
//
// # Files
//
// A caller on this machine may have the file of a blob, to read, and that of an
// ingest, to write. Of the second, contentd believes nothing until the commit. It
// closes its own descriptor then, opens the file for reading and takes a read
// lease, which the kernel refuses as long as anybody can write the file: through
// a descriptor, a mapping, or one on its way in a socket. Under the lease the
// bytes are read and hashed, and after that the lease must still be held. So a
// caller that goes on writing wastes its own ingest and nothing else. Where the
// file system has no leases, which Open tries, no file is lent to be written.
//
// # Limits
//
// A backup is made every [Config].BackupMinutes and at a clean stop, if anything
// has changed; two are kept.
//
// Nothing is written to a disk with less free than [Config].FreeMinMiB; deletes
// go on. An ingest without a lease is removed a day after it was last written.
//
// Writers are held for at most [gc.HoldMax], and for as long as a transaction of
// a sweep takes that began before. A cycle has at most [gc.NotesMax] notes of
// about 300 bytes and is over then; Freeze reads what was noted while writers are
// held. A sweep takes [gc.SweepMax] nodes, some hundreds to a transaction.
//
// A writer that waits for another has its ref and its stream, and nothing else.
// There are as many writers and readers as the process may have descriptors, of
// whom at most 256 have files (contentrpc.HandleServer). Who writes a file is
// held to the free space by asking: to one that does not ask the disk is as
// large as it is. A ref is at most 4096 bytes and a label 4096. A commit and a
// resume wait up to a second for a file that is open to write.
//
// # Events
//
// /content/create when a namespace has a blob, /content/delete when it has not,
// each in the transaction of the record. None for what the collector sweeps, as
// with containerd.
//
// # Needs
//
// No capability and no network. A file system on which rename is atomic, and
// leases (fcntl) for files that are lent to be written.
package contentd
