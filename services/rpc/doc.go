// Package rpc makes the servers and clients of the suite: message sizes,
// keepalive, errors that keep their kind across a socket, tracing, metrics, and
// who may call what.
//
// A handler returns plain errors of [errdefs] and a caller gets the same kinds
// back; neither knows a status code. The peer is known by the credentials that
// the kernel keeps with a unix socket; what it may call is the table [Rules],
// and what the table does not say is denied.
package rpc
