// Package taskd keeps containers and runs their tasks: it starts the process
// beside each, the shim, speaks to it, and finds it again after a restart.
//
// # On disk
//
// The database in <root>/db has these keys:
//
//	container <namespace> <id>   a container.Container
//	dead <namespace> <id>        how a task ended whose shim died
//	outbox …                     events that the bus has not taken yet
//
// A task is a directory, its bundle, laid out as containerd's shims expect:
//
//	<state>/boot                               the boot that the bundles are of
//	<state>/io.containerd.runtime.v2.task/<namespace>/<id>/
//	    config.json        the container's spec, byte for byte
//	    rootfs/            where the shim mounts
//	    work               link to <root>/io.containerd.runtime.v2.task/<namespace>/<id>
//	    log                FIFO; what the shim writes there is logged
//	    shim-binary-path   the shim's executable
//	    bootstrap.json     where the shim listens
//	    task.json          our record: how far the task has come, and which
//	                       process its shim is
//	    events.json        events that our own shim has not told yet
//	    events.hold        while it is there our own shim tells nothing
//	    …                  what else the shim keeps there
//	<state>/io.containerd.runtime.v2.task/<namespace>/.<id>-<instance>/
//	                       a bundle on its way out
//
// The record of a task is in its bundle and not in the database: it is worth
// something as long as its shim may live, so that it must survive us and need
// not survive the machine, and nothing on the way to a container's start waits
// for a disk. Parents of bundles are 0711 and bundles 0700, or 0710 with the
// group of root in the container's user namespace.
//
// # What survives a crash
//
// Containers, always: an acknowledged write is on disk. Tasks, if it was only
// taskd that ended: what may exist is recorded before it can exist, so that the
// next start finds every shim, whatever step it was that came last.
//
//   - A bundle without a record never had a shim, and is removed.
//   - A record that says "creating" is of a task that nobody was told of. Its
//     shim is ended and the bundle removed.
//   - One that says "created" is of a task. Its shim is looked for until it
//     answers. Only proof ends the search: nobody listens, and the process that
//     did has ended, told from another of the same pid by its time of birth.
//     Then the shim's delete command is run, and how the task ended is recorded
//     and told as /tasks/exit and /tasks/delete in one transaction. Doubt keeps
//     the task: its status is unknown, and its shim is tried again.
//   - One that says "deleting" is of a deletion that was begun. It is completed.
//
// Events that our own shim could not tell before it ended stay in its bundle,
// which stays, out of sight, until they are in the outbox. There they are under
// the ids that the bus gives what the shim tells, which may still do so itself.
//
// A task whose shim died can be waited for and deleted, and told its status,
// until it is deleted, replaced, or its container goes.
//
// Bundles of another boot are removed unseen: nothing of them lives.
//
// # Root file systems
//
// A shim mounts what it is given. What it cannot make by itself, such as images
// that are files, snapshotd makes before, under a name that is in the task's
// record first, and undoes when the bundle goes; snapshotd is asked for nothing
// else.
//
// # Gates
//
// The first process of a container starts when every gate that its labels, or
// its namespace's, name has let it; see package gate. All are asked at once,
// over the bus. The namespace is asked for while the task is made and at most
// once more when it starts; a namespace that cannot be asked for is a start that
// fails, because its network might be what is missing. Meanwhile nothing is
// held and nothing written: the task is created, and stays so if a gate denies
// it, does not answer, or the caller or we end. The asking ends when the
// process does.
//
// # Locking
//
// Store.mu guards the maps of tasks and is taken before live.mu, which guards
// one task; neither is held across a call or a change of the disk. The locks of
// flights and of the lobby are leaves. Calls to different shims never wait for each other, and a
// caller who leaves takes nobody with him: waits, measurements and deletions
// belong to the Store and are shared by all who ask at the same time.
//
// # Limits
//
// A shim has 2 s to say its state, 5 s to be found, 30 s to start, 2 min to
// create and 1 min for every other call but Wait. 8 questions for its
// state are before it at once. 4 delete commands run at once and 64 shims are
// asked at once by a list. A container has 16 gates, an answer 30 s, and who is
// to answer 10 s to be there; the config has both. The labels of a namespace
// have 5 s. 256 results of deletions are kept for callers who had
// left. Per task there are two goroutines, one connection
// and one FIFO, of which lines are logged up to 4 KiB; per shim one pidfd.
//
// # Events
//
// /containers/create, update and delete in the transaction of the change;
// /tasks/exit and /tasks/delete for tasks whose shim died, after what the shim
// had left to tell. All other events of tasks are told by the shims.
//
// Of one container they are told in the order in which they became true, although
// two tell them: a task that is created while the bus has not taken all of ours
// keeps its shim from telling anything until it has; and before a container is
// deleted, or has another task, what the last shim has left to tell is put into
// the outbox if it is not told within 20 ms. Neither waits for the bus. Shims of
// others are told nothing of this, and drop what they cannot tell at once.
//
// Of tasks that ended with the machine nothing is told, as nothing is known of
// them any more: who starts with a machine asks what there is.
//
// # Needs
//
// Root, to run containers. Linux 5.8 for what is mounted where. Shims are
// looked for beside our executable and in $PATH, and are given the public
// address verbatim, because they hash it into their sockets' names. The unit
// has KillMode=process: shims outlive us.
package taskd
