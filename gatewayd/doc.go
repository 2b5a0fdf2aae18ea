// Package gatewayd is the public door's own part: what clients are told of the
// suite as a whole. The rest of the door, passing calls on to the daemons that
// own them, looks into no message and is in services/rpc.
//
// # On disk
//
//	<root>/uuid   names the state of this node; made at the first start
//
// # What survives a crash
//
// The uuid: it is synced under another name and renamed before anyone is told
// of it. A uuid file that does not hold a uuid is an error of Open, not a
// reason to make another.
//
// # Locking
//
// Gateway.mu guards what the daemons last said of themselves. It is not held
// while a daemon is asked.
//
// # Limits
//
// A daemon has two seconds to describe itself; then its last description
// counts. Calls that are held for a daemon that is away are limited in number
// and time by package rpc; one more is refused.
//
// # Events
//
// None.
//
// # Needs
//
// No capability, no mount, no network. It dials the sockets of the other
// daemons.
package gatewayd
