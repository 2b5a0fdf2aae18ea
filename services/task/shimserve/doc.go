// Package shimserve puts a [runner.Runner] on containerd's shim v2 protocol:
// ttrpc services containerd.task.v2.Task and containerd.task.v3.Task, whose
// messages are the same, the events that a shim sends, and what a shim and the
// daemon that starts it tell each other through stdin and stdout. It
// translates and does nothing else.
package shimserve
