// Package snapshotd keeps snapshots, stacks of directory trees, and extracts
// layers into them. It describes the mounts of a snapshot and owns none of them;
// the one exception are activations, which it is asked for.
//
// # On disk
//
//	<root>/<snapshotter>/         trees of snapshots, see the snapshotter's package
//	<root>/<snapshotter>/notes/   a file for each tree: what it says of itself
//	<root>/db/                    records, see package kv
//	<root>/backup/, <root>/rebuild, <root>/db.damaged-*   see package keep
//	<state>/mounts/         what is mounted for callers, see package mounter; ends with the boot
//
// What has the trees is a [driver.Driver] for each snapshotter, which has no
// records and knows a tree by its id. Ids are never used again. The records, by
// key:
//
//	snapshot <snapshotter> <namespace> <name>          id, kind, parent, labels, times, usage
//	child <snapshotter> <namespace> <parent> <child>   the same, the other way round
//	dir <id>                                           whose tree it is
//	origin <id>                                        of a committed tree: its sum, the layers it was filled with
//	trash <id>                                         a tree whose snapshot is gone
//	quarantine <id>                                    a tree that was a snapshot's and did not look as it had to
//	unclaimed <id>                                     a tree of which nobody knows whose it is, since records were lost
//	member <namespace> <lease> <generation> <type> <id>   members of a lease
//	leased <namespace> <type> <id> <lease> <generation>   the same, the other way round
//	activation, activation.ending, activation.last, unmount   see package mounter
//	gc.hold                                            until when writers are held, see package gated
//	begun, shared, mounted, mounts                     of external snapshotters, see begun.go
//	last                                               the highest id that was used
//	outbox, outbox.next                                see package outbox
//
// # What survives a crash
//
// Everything that was acknowledged. A commit syncs the file system and then
// writes the record, so that a committed snapshot is whole. The directory of an
// active snapshot is not synced: before its commit nothing in it is promised,
// and if a power failure takes it, Open makes it anew, as its parent is. With
// [overlayfs.Config].Volatile, an active snapshot that was given out in an earlier
// boot is neither mounted nor committed: nobody knows what it lacks.
//
// A removal writes the id to the trash in the transaction that drops the record;
// Collect removes the files later, one directory after the other, and goes on
// with the next if one fails. A directory without a record, left by a crash
// between the two, is trash too. A committed snapshot without its directory is
// reported and left alone.
//
// What a committed snapshot was made from, where that is not what it is, goes after
// its record is written; which ones may have some left is in memory, and Open looks
// at all of them.
//
// Layers are extracted through an overlay that is attached nowhere and ends with
// its descriptor. Nothing is removed or unmounted when the daemon ends, and it
// starts without any other. The only mounts that anybody else can see are those of
// activations: a record says so before they are made, a start knows them again,
// and undoes what a crash left of those that were never acknowledged.
//
// # When records are lost
//
// A note has a line for each state of a snapshot's record; the last that can be
// read counts. It is written before the tree, and before the commit syncs the
// file system, so that it is durable with the tree and costs no sync. That a
// tree is committed is only believed with the line that is written after the
// sync. When the database was damaged or is missing, or an older backup has
// taken its place, the records are completed from the notes, parents first; what
// was made again has the label gc.root until somebody has looked. A tree that
// nobody can tell anything of is not trash then: a container may run on it.
//
// A commit keeps the sum of what the tree looks like (package tree), and which
// layer was extracted into it. What was written past this daemon shows in the
// sum. A check compares the rows with each other and with the trees, and the
// trees with their sums; it reads no file. A deep one extracts the layer of a tree
// once more, beside it and on the same parents, if the namespace has the blob, and
// compares the files. Where the sum holds, only bytes and extended attributes that
// differ count: whatever looks otherwise was written past the layer before the
// commit. That tree has no record, and goes when it was compared. A repair
// extracts a layer again into a tree of its own, which takes the place of the wrong
// one only if it has the sum; the wrong one is in quarantine then, because
// containers may run on it.
//
// # Layers
//
// The mounts of a call to Apply only say which snapshot is meant. They must be
// those of an active snapshot of the namespace, and what is mounted is what the
// records say: whoever may have layers extracted cannot reach another directory
// of the host, or another namespace, by describing it. See package layer for
// what a layer itself can do, which is nothing outside of its snapshot.
//
// The same holds for Diff, which reads any snapshot of the namespace, or of the
// lower tree none. Where the upper one has the lower one for its parents, and its
// driver an upper directory, that is all that is read; otherwise both trees are.
// Packages changes and pack say what a layer tells of a tree. An active snapshot
// is held while it is read; a committed one does not change, and one that is
// removed meanwhile has no layer.
//
// # Unpacking
//
// Unpack extracts the layers of an image at the same time, each alone, into trees
// that have no record, while its bytes may still be arriving (package arrival).
// When the layer below is settled, package rebase puts it on top of that, or finds
// that it would have become something else there: then it is extracted once more,
// in its place, as are all layers of a driver that cannot rebase. What is settled
// is synced, many at once, and then the records of all of them are one transaction,
// in order. A tree that becomes nothing is trash when the call ends, and after a
// crash, when the store is opened, as it has no record.
//
// The digest of a layer is that of the bytes that were read. Whether contentd has
// committed them does not matter: the snapshot is right, and its lease keeps it.
//
// Of those who want the same snapshot one makes it. The others wait, and one of
// them begins anew if that call ends.
//
// # Mounts
//
// What a caller of Activate describes is not taken at its word either: types and
// options are of a closed list, and a source is opened below the directory of a
// snapshot of the namespace. See package mounter.
//
// # External snapshotters
//
// A snapshotter that the config names as a proxy is another process, called over
// containerd's protocol for that (package remote) by names of the form
// <namespace>/<id>/<name>, with the namespace and without the lease. Its records
// are here like those of the others, so that what can be listed is, while it is
// away; Open does not ask it for anything. Before it is told to make or commit
// something, a row says so: what a crash leaves with it is known, and removed or
// found done. It may have a committed snapshot already, and say so in answer to
// the label containerd.io/snapshot.ref: that becomes one of the namespace, and is
// removed when no namespace has it any more.
//
// Its mounts are remembered, so that Apply finds a snapshot by them. Only what it
// describes itself is mounted, and where nobody else sees it.
//
// # Garbage
//
// Snapshots and activations are objects of package gc. A lease, a label or the
// container that it names keeps an activation, and nothing else. A snapshot keeps its parent, and nothing
// but its labels, leases and containers keeps an active one, as in containerd. A
// sweep gives trees to the trash as a removal does, children before parents, and
// deletes the row of the child with it. A snapshot with a child is never swept,
// whatever the collector knows.
//
// # Locking
//
// Writers wait at the gate, see package gated, before they have the database's
// turn; who holds a snapshot may wait there, and no Sweep wants what is held.
//
// A snapshot's files are held, in memory, by whoever extracts into it, commits
// it or removes it; Apply and Commit wait for each other, Collect comes back
// later. An activation is held in the same way by whoever makes or undoes it.
// Store.mu and its like in package mounter guard who holds what and are leaves.
// Leases are looked up before anything is held. Order: held snapshot, a place
// among those who extract or the turn to remove a tree, the turn to sync the file
// system, the database's turn. Who restores a backup has the turn to remove trees
// before all, so that none goes which the backup has as a snapshot. Who unpacks
// waits for others, for layers below, and for an ingest that cannot be read as it
// arrives, without a place. Commits that come at the same time share one sync, see
// package driver.
//
// # Limits
//
// [Config].Applies layers are extracted or made at once, the others wait. Each
// takes at most 64 MiB of memory and the disk down to [Config].FreeMinMiB. The
// content store may send or take nothing of a layer for 30 seconds, and has five
// minutes to make one durable. A layer that is made has at most 1 TiB of contents,
// holes included, and is made in two hours; the names in the directories on one
// path, and files with several names, take at most 256 MiB of memory then, and
// where an EROFS image is made. A call to an external snapshotter has 20 seconds to
// two minutes; 64 of them are under way at once, and after three in a row without
// an answer the next are refused for five seconds. The mounts that it describes
// have 256 KiB of text. A key is at most 4096 bytes and a label 4096.
// Unpack takes 1000 layers, and 20,000 in all calls. Trash waits in the database,
// as long as need be. Sixteen activations are made at
// once, each of at most 255 mounts and in two minutes.
//
// # Events
//
// /snapshot/prepare, /snapshot/commit and /snapshot/remove, each in the
// transaction of the record; the last also of what was swept.
//
// # The ids of containers
//
// A snapshot whose labels are a mapping is shown to a container with users of its
// own. Files on disk keep their owners, so that the layers below are one for all:
// the mounts have the options uidmap and gidmap, and whoever makes them maps the
// layers below. What such a container writes has the ids of the host. A snapshot
// without a parent is mapped as a whole, and nothing in it changes its owner.
// Where the kernel cannot, clients are told by the capabilities, and may copy the
// image with other owners if [overlayfs.Config].SlowChown says so. The drivers
// that stack nothing leave it to them.
//
// # Needs
//
// Root, for chown, mknod and mount; or to be root of a user namespace with a mount
// namespace of its own. There, overlayfs keeps its marks in attributes of users,
// there is no rebase, no ids are mapped, devices in layers are left out, a file of
// somebody whom the namespace does not have is refused, and what cannot mount is
// missing and says so. No network. A kernel from 5.8 (openat2 and
// mounts without a place), better 6.8 (overlays built one layer at a time;
// before that, a thread with a mount namespace of its own makes them). A file
// system for overlayfs' upper directories: ext4, XFS with ftype=1, btrfs; on
// another the daemon runs, and reports the snapshotter as missing. For btrfs, one at
// <root>/btrfs; else that snapshotter is missing, and says why. For erofs, EROFS in
// the kernel, better 6.12 (images mounted by their files; loop devices before that)
// and 6.15 (stacked without being mounted anywhere). Activations
// want the mount namespace of the host, so that containers see them; loop devices
// for images of ext4 and, before 6.12, of EROFS; mkfs.ext4 or mkfs.xfs for a
// snapshotter that asks for empty images; 5.12 for bind mounts that are read-only.
package snapshotd
