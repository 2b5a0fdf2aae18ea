// Package netd connects containers to CNI networks. It is a plugin: a gate that
// a container waits at before it starts, and a listener to events. The suite
// does without it, and it does with what every plugin has, the public socket
// and the bus.
//
// A container that has the label gantry.dev/network and names the gate network
// is connected when it is asked for at the gate, by CNI's plugins, in the
// network namespace that its runtime has made. Its addresses become the label
// gantry.dev/network.addresses; then it may start. It is disconnected when its
// first process has ended, for what ended is not to hold a port of the node.
//
// # On disk
//
//	<root>/                            locked by the netd that has it
//	<root>/attachments/<id>/           one attachment; locked by who works on it
//	    record.json                    all that is needed to undo it
//	    record.new                     the next one, while it is written
//	    results/                       what plugins said, as libcni keeps it
//	<root>/cursor                      how far it came with the bus's events
//	<state>/.netns/<id>                the network namespace, mounted on a file
//	<state>/<network>/resolv.conf      for containers of a network
//	<state>/.nodes                     addresses of the node in networks, for dnsd
//
// An attachment's id is what plugins know it by: "gantry-", which root directory
// it is of, and something that is never used again. Networks are the *.conflist
// files of the directories that the config names, and are read each time.
//
// # What survives a crash
//
// An attachment is intended on disk before anything is done, under an id that
// nobody else has; it is whole when its record says so; and its record goes
// last. So whatever was cut short is found by the next start and undone: a
// container that may have started is one whose record is whole, for the gate
// lets it pass after that. Asked again about the same task, it is let pass
// without being connected twice. The same task is one that has the same network
// namespace, which cannot have become another's while it is pinned.
//
// The namespace is pinned because plugins need it to undo what they did: with
// its last process it would go, and rules of the packet filter that are found
// by what was in it would stay.
//
// A plugin that runs outlives a netd that is killed, with all its children, and
// so does the lock that they have been given. Nobody undoes what is still being
// done.
//
// What a boot ends is not tried to be kept: addresses are released and labels
// are removed at the next start.
//
// # Locking
//
// For one container one thing is done after the other, by turns; for different
// ones they are done at once. The lock of an attachment's directory comes after
// the turn. Store.mu guards maps and is held across nothing.
//
// # Limits
//
// Plugins work on 8 attachments at once and have 20 s for each; then they are
// killed with their children. taskd has 5 s to answer. A container publishes 64
// ports at most; a port of the node is published once, and not where a process
// of the node listens. A network's file has at most 1 MiB, and so has what a
// plugin says. What cannot be undone is tried again after 200 ms, and then less
// and less often, every 30 s at last; its ports stay taken meanwhile. All
// attachments are looked at every 5 minutes, without a reason.
//
// # Events
//
// None of its own: taskd tells of the labels. It hears /tasks/exit, /tasks/delete
// and /containers/delete, and takes each for a reason to ask taskd what is true,
// so that one that is late, told twice or of an earlier task does no harm. After
// a gap, and at the start, it looks at every attachment: its records are what it
// goes by, and the cursor in <root>/cursor spares it nothing but is how operators
// see that it listens.
//
// # Networks
//
// The default network that gantryctl writes has a bridge, addresses by
// host-local, and published ports by portmap. What else there is to know:
//
//   - Containers on a bridge share a wire. With raw sockets one could speak for
//     another, advertise itself as a router (CVE-2020-10749), or reach what
//     listens on the node's 127.0.0.1, to which portmap opens the bridge's side
//     (as in CVE-2020-8558). So gantryctl gives a container on a network no
//     CAP_NET_RAW; and where host-local gives the addresses, neither the node's
//     end of the bridge nor the containers take advertisements.
//   - portmap is told to use iptables: its rules for nftables, where a newer one
//     would choose those by itself, took traffic to others (CVE-2025-67499).
//   - Forwarding is allowed as the node has it. On a node whose policy drops what
//     is forwarded, as one with Docker, add {"type": "firewall"} to the list.
//   - Labels are taken at their word: whoever may make containers may write them,
//     network.addresses too. ctr copies the labels of an image, which so may ask
//     for a network and for ports of the node; gantryctl drops those that mean
//     something to the suite.
//   - Names of networks are identifiers, ports are numbers, and neither becomes
//     part of a path or an argument unchecked. A list names plugins, not paths.
//
// Plugins with the verb GC, from version 1.1.0 of the specification, are given
// the attachments that there are; a network that others use too says disableGC.
// For the others host-local's files are looked through for attachments of ours
// that have no record, which a lost root directory leaves.
//
// # Needs
//
// Root, with CAP_NET_ADMIN and CAP_SYS_ADMIN, for plugins that enter network
// namespaces and for the mounts that pin them; CAP_SYS_PTRACE, to open those of
// containers; CAP_NET_RAW for iptables. Debian's containernetworking-plugins and
// iptables. It mounts, and so may not be in a mount namespace of its own.
package netd
