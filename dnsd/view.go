package dnsd

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantryd/gantry/services/network"
)

// A key is a container.
type key struct{ namespace, container string }

// A record is what is known of a container and its task.
type record struct {
	pid       uint32 // of the first process; 0 if it is not known
	alive     bool   // it has a task that has not ended: it may ask
	running   bool   // and one that has started: it has names
	addresses []netip.Addr
	names     []string
}

// label takes from a container's labels what is good in them. What is not good
// is not there.
func (r *record) label(labels map[string]string) {
	r.addresses, _ = network.ParseAddresses(labels[network.LabelAddresses])
	r.names, _ = network.ParseNames(labels[network.LabelNames])
}

// A name is a container that is found under a name: by its id, or by another.
type name struct {
	key
	other bool
}

// A view is what is known, and found by names and addresses. It knows nothing of
// time or of who tells it; whoever has it has a lock.
type view struct {
	records   map[key]record
	byName    map[string][]name    // by fold(name, namespace)
	byAddress map[netip.Addr][]key // of those that may ask
	spaces    map[string]int       // names in a namespace, by fold("", namespace)
}

func newView() view {
	return view{
		records:   make(map[key]record),
		byName:    make(map[string][]name),
		byAddress: make(map[netip.Addr][]key),
		spaces:    make(map[string]int),
	}
}

// fold is a name within a namespace as DNS compares it.
func fold(name, namespace string) string { return strings.ToLower(name + "." + namespace) }

// labelMax is how long a part of a DNS name is.
const labelMax = 63

// named says whether an identifier can be the first part of a DNS name. One with
// a dot would be two, of which the other could be a namespace's.
func named(id string) bool {
	return len(id) <= labelMax && !strings.Contains(id, ".") && !strings.EqualFold(id, "localhost")
}

// put replaces what is known of a container.
func (v *view) put(k key, r record) {
	v.drop(k)
	v.records[k] = r
	if r.alive {
		for _, a := range r.addresses {
			v.byAddress[a] = append(v.byAddress[a], k)
		}
	}
	for _, n := range r.found(k) {
		n, other := fold(n, k.namespace), n != k.container
		v.byName[n] = append(v.byName[n], name{k, other})
		v.spaces[fold("", k.namespace)]++
	}
}

// found are the names under which a container is found.
func (r record) found(k key) (all []string) {
	if !r.running || len(r.addresses) == 0 {
		return nil
	}
	for _, n := range append([]string{k.container}, r.names...) {
		if named(n) && !slices.ContainsFunc(all, func(o string) bool { return strings.EqualFold(o, n) }) {
			all = append(all, n)
		}
	}
	return all
}

// drop forgets a container.
func (v *view) drop(k key) {
	r, ok := v.records[k]
	if !ok {
		return
	}
	delete(v.records, k)
	for _, a := range r.addresses {
		without(v.byAddress, a, func(o key) bool { return o == k })
	}
	for _, n := range r.found(k) {
		without(v.byName, fold(n, k.namespace), func(o name) bool { return o.key == k })
		if space := fold("", k.namespace); v.spaces[space] > 1 {
			v.spaces[space]--
		} else {
			delete(v.spaces, space)
		}
	}
}

func without[K comparable, V any](m map[K][]V, k K, f func(V) bool) {
	if left := slices.DeleteFunc(m[k], f); len(left) > 0 {
		m[k] = left
	} else {
		delete(m, k)
	}
}

// answersMax is how many addresses an answer has.
const answersMax = 16

// lookup returns the addresses of a name, as [fold] makes it, that eyes see. Ids
// count before other names: what is called as a container's id is that
// container.
func (v *view) lookup(folded string, eyes eyes) (all []netip.Addr, ok bool) {
	for _, other := range []bool{false, true} {
		for _, n := range v.byName[folded] {
			if n.other != other || !eyes.see(n.namespace) {
				continue
			}
			ok = true
			for _, a := range v.records[n.key].addresses {
				if len(all) < answersMax && !slices.Contains(all, a) {
					all = append(all, a)
				}
			}
		}
		if ok {
			break
		}
	}
	return all, ok
}

// holder returns the container that has an address. Where several say so, the
// one that runs has it, and if that does not decide it, nobody has.
func (v *view) holder(a netip.Addr) (key, bool) {
	all := v.byAddress[a]
	if len(all) > 1 {
		all = slices.DeleteFunc(slices.Clone(all), func(k key) bool { return !v.records[k].running })
	}
	if len(all) != 1 {
		return key{}, false
	}
	return all[0], true
}

// namespaces are those of the containers that are known.
func (v *view) namespaces() []string {
	all := make(map[string]bool)
	for k := range v.records {
		all[k.namespace] = true
	}
	return slices.Collect(maps.Keys(all))
}

// Eyes are who asks: the node sees every namespace, a container its own, and who
// is neither sees none.
type eyes struct {
	node      bool
	namespace string
}

func (e eyes) see(namespace string) bool {
	return e.node || e.namespace != "" && e.namespace == namespace
}
