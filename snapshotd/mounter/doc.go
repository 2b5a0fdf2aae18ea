// Package mounter makes mounts for callers, and undoes them: the store of
// activations. It is the one place where snapshotd owns mounts.
//
// # What may be mounted
//
// A caller describes mounts, but says nothing that is taken at its word. Types
// and options are those of a closed list. A path is either in a snapshot of the
// caller's namespace, see [Places], or in what the same activation has mounted
// before. It is opened step by step from a directory of the daemon's own, through
// no link, and what is mounted is the open file: whatever is put in its place
// meanwhile is not looked at. Images, which the kernel has to parse, lie beside
// the tree of a snapshot, where no layer and no container writes.
//
// The options uidmap and gidmap show what is mounted with the ids of a container;
// of an overlay, what is below the upper directory. They change nothing on disk.
//
// # Where
//
// The i-th mount of an activation is at <dir>/<id>/<i>, or there is a link to its
// loop device. It is in the mount namespace of the daemon, which has to be the
// host's: containers are to see it. The records, by key:
//
//	activation <namespace> <name>   its mounts, what is left to the caller, labels
//	activation.ending <namespace> <name>   it is being undone
//	unmount <id>                    mounts that nobody has any more
//	activation.last                 the highest id that was used
//
// # What survives a crash
//
// The record is written before anything is mounted, and says that it is being
// made; then that it is active; and before anything is unmounted, that it ends.
// Open gives what is not active to Collect, which undoes it; and what is of
// another boot, of which nothing is mounted. Undoing can be done again at any
// point. A loop device that is not mounted yet ends with the process, until there
// is a link to it.
package mounter
