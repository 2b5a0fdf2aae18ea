// Package shim is the process beside a container. It makes the container with
// an OCI runtime (runc unless told otherwise), is the parent of its processes,
// carries their streams, and keeps how they ended, so that every daemon may
// come and go while the container runs.
//
// The executable is containerd-shim-gantry-v1. It speaks containerd's shim v2
// protocol, so that a stock containerd can use it too. One process serves one
// task and its execs.
//
// # How it is started
//
// The working directory is the bundle. The flags are containerd's: -namespace,
// -address, -publish-binary, -id, -debug, -bundle. The environment brings
// TTRPC_ADDRESS, where events go. Stdin brings a BootstrapParams in protobuf,
// or runtime options in an Any, or nothing, and is read to its end.
//
//	… start    start a shim in a process of its own, print where it listens
//	           (a BootstrapResult in protobuf if stdin brought BootstrapParams,
//	           JSON of version 2 otherwise), and exit
//	… serve    be the shim: print one line
//	           {"version":3,"address":"unix://…","protocol":"ttrpc"}
//	           on stdout when it can be reached, close stdout, and live on; it
//	           saves a process over start. Who starts it reads stdout to its
//	           end, sees one line or none, and gives it a session or a process
//	           group of its own. What fails before the line is on stderr, and
//	           the exit status is 1
//	… delete   remove what a dead shim has left, print a DeleteResponse; it may
//	           be called again, and after everything was deleted
//	-v, -info  which program this is, and what its OCI runtime can do
//
// The socket is <dir>/<sha256 of "address/namespace/id"> in
// /run/containerd/s, or in the directory that BootstrapParams names: mode 0600
// in a directory of mode 0700, for processes of our own user and group.
//
// SIGTERM, SIGINT and SIGHUP end a shim that has no live process at once, and
// another when its last process has ended. A shim that has no task ends by
// itself after ten minutes.
//
// # On disk
//
//	<bundle>/runtime.json        how the OCI runtime is called; before it is
//	<bundle>/init.json           pid, start time and boot of the first process
//	<bundle>/exit.json           how it ended; before anyone is told
//	<bundle>/events.json         events that nobody has taken yet, one in a line
//	<bundle>/exec/<id>/          process.json, pid, exit.json of an exec
//	<bundle>/log.json, *.log.json  what the OCI runtime said when it failed
//	<bundle>/address, shim.pid   where we listen, who we are
//	<bundle>/log                 a FIFO made by the daemon, for our own log
//	<bundle>/rootfs              where we mount
//
// # What survives a crash
//
// Containers run on when the shim dies; nobody can take its place as their
// parent, so that the exit status of a process that ends later is lost. What
// was told is recorded before: exit.json is synced, renamed and its directory
// synced before Wait answers and before the event is published. delete removes
// the rest; it kills the recorded first process only, and only if number,
// start time and boot are the same.
//
// While the daemon has made events.hold in the bundle nothing is told: what was
// before the task is not told yet. The daemon may tell for us what is in
// events.json; the bus knows it again.
//
// Events are kept in memory and in events.json until eventbus has them, and
// tried again until then. A shim that ends tries for ten seconds more and
// leaves the others in the file. Events carry the time they were made at,
// which differs among the events of one shim, and are the same bytes every
// time they are sent.
//
// # Streams
//
// A process gets pipes, or a terminal. An end that nobody asked for is
// /dev/null. The far ends are FIFOs or file:// URIs, which are appended to.
//
// A FIFO is never waited for: neither at its opening nor at its end. Of stdout
// and stderr we hold only the writing end, so that the kernel tells us whether
// somebody reads:
//   - a reader that is slow holds the process back, for as long as it likes;
//   - without a reader the FIFO's buffer (64 KiB) is filled for whoever comes;
//     then the process is held back for 30 seconds; then output is dropped,
//     and counted in the log, until somebody reads again. A FIFO whose name
//     was removed can get no reader, and is not waited for.
//
// A file that cannot be written to drops and counts, and is tried again with
// what comes next.
//
// Standard input ends when CloseIO has been called and the last client has
// closed the FIFO. When a process has ended, its output is delivered to the
// last byte. Heirs that hold its pipes have two seconds more; then the reader
// sees the end, and what the heirs still write is read and forgotten until the
// process is deleted, so that they live.
//
// # Locking
//
// Shim.mu, container.mu, process.mu and the mutex of its streams are taken in
// this order; queue.mu and reaper.mu are last. None is held while a program runs. What runs
// the OCI runtime for a process is in the process's slot, which is waited for
// with a context: the next call waits, and goes when its caller goes.
//
// # Limits
//
// 1000 execs of a task until they are deleted; 8192 events that nobody takes,
// of which the second half is for processes that exist already: when the first
// is full, Create, Exec, Pause and Resume are refused. A call of the OCI
// runtime has five minutes. A stream that carries bytes has one buffer of
// 32 KiB, a silent one has none. Delete gives a reader ten seconds for the rest
// of the output.
//
// # Events
//
// Each after its fact, in this order: /tasks/create, /tasks/start,
// /tasks/exit, /tasks/delete; /tasks/exec-added, /tasks/exec-started,
// /tasks/exit. The start of a process is told before its end, the ends of
// execs before that of the first process, and /tasks/oom before the exit of the
// process that shows it: the kernel's count of processes killed for memory is
// read when a process has ended.
//
// # Needs
//
// Root, or what the OCI runtime needs; the host's mount namespace; Linux 5.6
// for pidfd_open and openat2.
package shim
