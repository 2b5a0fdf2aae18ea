// Package dnsd answers for names of containers that are connected to networks.
// It is a plugin: it hears events, and asks taskd what is true. The suite does
// without it.
//
// A container that runs and has addresses, which netd writes into its label
// gantry.dev/network.addresses, is found by its id and by the names that its
// label gantry.dev/names lists. What can be asked:
//
//	web                              by a container, of its own namespace
//	web.default.gantry.internal      the full name; the zone is configurable
//	2.0.87.10.in-addr.arpa           whose address it is: the full name
//
// The types are A, AAAA and PTR, and what else is asked of a name that there is
// has no answer. A name that there is not does not exist, for as long as an
// answer may be remembered, 5 s. An id comes before others' further names, and
// who share one of those are all answered. What is no single part of a DNS name
// (longer than 63 bytes, or with a dot) is no name, and neither is localhost.
//
// Names of one part, those of the zone, and those of addresses in the networks
// are never asked of another server. All others are, of those that the node's
// /etc/resolv.conf names: one after the other, by UDP, and by TCP what is long.
//
// # Who sees what
//
// A container is known by the address that it asks from, and sees the names of
// its own namespace, with their addresses, and nothing else: neither whether
// another namespace has a name. The node, which asks from an address of its
// own or of its loopback, sees every namespace by full names. So does a
// container that has the node's network. Who is in a network but no container is
// refused names, and is forwarded for. Everybody else hears nothing: a packet
// that a router of the node's let through is no reason to answer.
//
// An address is who it says it is as far as the network makes sure of that;
// gantryctl gives a container on a network no raw sockets. Where several claim
// one, the one that runs has it, or nobody.
//
// # On disk
//
// Nothing. It reads <state of netd>/.nodes, in which netd says which addresses
// the node has in networks, and /etc/resolv.conf, both every 2 s.
//
// # What survives a crash
//
// Nothing has to. A start subscribes to events first, then lists containers and
// tasks, and then hears what happened meanwhile. Until it has listed, it knows
// no name, and says so (SERVFAIL) and not that there is none. A gap in the events
// is a start without the forgetting.
//
// # How it follows
//
// An event is believed at once: a task that has ended has no name any more when
// its event is there, and addresses are those of the last label. Then taskd is
// asked about the container, since the event may be an old one. What is heard
// while taskd answers makes it ask again. All containers are listed every 5
// minutes, without a reason.
//
// While the bus or taskd is away, what is known is answered for 30 s more; then
// names of containers are SERVFAIL until they are back, and that is logged. Other
// names are forwarded all the time. That taskd is away is noticed within 10 s, by a
// question about one container, and that the bus hangs within 25 s, by a read that
// is not answered; one that ends says so.
//
// # Locking
//
// Server.mu guards what is known, and sources.mu who asks; neither is held across
// anything, nor within the other. Server.turn has lists and looks come one
// after the other. It is taken before Server.mu.
//
// # Limits
//
// A question has 4 KiB, an answer by UDP 512 bytes or what the question offers,
// at most 1232, and 16 addresses. ANY and transfers are refused. A source asks
// 1000 questions a second; more are not heard. 4096 sources are known at once.
// 256 questions wait for others at once, 32 of one source; what is more is
// SERVFAIL. There are 128 connections, 8 of one source, each of 100 questions
// and 5 s of silence. Three upstreams have 2 s each, and 5 s together. A
// container that asks before we are told of it waits 1 s. A container has 16
// addresses and 16 further names; a label in which one is not good counts for
// nothing.
//
// # Events
//
// None of its own. It hears /tasks/start, /tasks/exit, /tasks/delete,
// /containers/update and /containers/delete.
//
// # Needs
//
// CAP_NET_BIND_SERVICE, for port 53. It binds addresses that are not there yet
// (IP_FREEBIND): a bridge has its own when the first container is connected. Of
// taskd it may get and list containers and tasks, of imaged list namespaces; on
// the bus it is the plugin dnsd.
package dnsd
