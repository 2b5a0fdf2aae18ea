// Package shimrpc is how shims are spoken to: containerd's task API, version 3
// or 2, over ttrpc, and the words exchanged with a shim that starts or cleans
// up. It translates and does nothing else.
package shimrpc
