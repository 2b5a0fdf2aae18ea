package snapshotd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/difftest"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/snapshot"
	"github.com/gantryd/gantry/services/snapshot/snapshottest"
	"github.com/gantryd/gantry/snapshotd/driver"
	"github.com/gantryd/gantry/snapshotd/kernel"
)

// theirs is the name of the external snapshotter of these tests.
const theirs = "theirs"

// A process stands for an external snapshotter: snapshots that others keep, and
// what can be wrong with whoever does.
type process struct {
	snapshot.Stores
	mu    sync.Mutex
	wrong func(ctx context.Context, call, key string) error // guarded by mu
	had   []snapshot.Info                                   // guarded by mu: what it says it has
	lie   []mount.Mount                                     // guarded by mu: what it says is to be mounted
	seen  []string                                          // guarded by mu: calls and keys
}

func (p *process) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// calls are those of a method that were seen, by their keys.
func (p *process) calls(method string) (keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		if key, ok := strings.CutPrefix(s, method+" "); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

func (p *process) In(scope namespace.Scope, snapshotter string) (snapshot.Store, error) {
	if scope.Lease != "" || snapshotter != theirs {
		return nil, fmt.Errorf("called as %+v of %s: %w", scope, snapshotter, errdefs.ErrInternal)
	}
	s, err := p.Stores.In(scope, Overlayfs)
	return processIn{s, p}, err
}

func (p *process) called(ctx context.Context, call, key string) error {
	p.mu.Lock()
	wrong := p.wrong
	p.seen = append(p.seen, call+" "+key)
	p.mu.Unlock()
	if wrong == nil {
		return nil
	}
	return wrong(ctx, call, key)
}

type processIn struct {
	snapshot.Store
	p *process
}

func (n processIn) Stat(ctx context.Context, key string) (i snapshot.Info, err error) {
	if err := n.p.called(ctx, "Stat", key); err != nil {
		return i, err
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	for _, i := range n.p.had {
		if i.Name == key {
			return i, nil
		}
	}
	return n.Store.Stat(ctx, key)
}

func (n processIn) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if err := n.p.called(ctx, "Mounts", key); err != nil {
		return nil, err
	}
	m, err := n.Store.Mounts(ctx, key)
	return n.lied(m), err
}

func (n processIn) lied(m []mount.Mount) []mount.Mount {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if n.p.lie != nil {
		return n.p.lie
	}
	return m
}

func (n processIn) Prepare(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	if err := n.p.called(ctx, "Prepare", key); err != nil {
		return nil, err
	}
	if n.has(o.Labels[snapshot.LabelTarget]) {
		return nil, fmt.Errorf("target: %w", errdefs.ErrAlreadyExists)
	}
	m, err := n.Store.Prepare(ctx, key, parent, snapshot.Options{Labels: without(o.Labels)})
	return n.lied(m), err
}

// without leaves out the target, which a store like ours would look for among
// its names.
func without(labels map[string]string) map[string]string {
	down := make(map[string]string)
	for k, v := range labels {
		if k != snapshot.LabelTarget {
			down[k] = v
		}
	}
	return down
}

func (n processIn) has(target string) bool {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	return slices.ContainsFunc(n.p.had, func(i snapshot.Info) bool { return i.Labels[snapshot.LabelTarget] == target && target != "" })
}

func (n processIn) View(ctx context.Context, key, parent string, o snapshot.Options) ([]mount.Mount, error) {
	if err := n.p.called(ctx, "View", key); err != nil {
		return nil, err
	}
	return n.Store.View(ctx, key, parent, o)
}

func (n processIn) Commit(ctx context.Context, name, key string, o snapshot.Options) error {
	if err := n.p.called(ctx, "Commit", name); err != nil {
		return err
	}
	err := n.Store.Commit(ctx, name, key, o)
	return errors.Join(err, n.p.called(ctx, "Committed", name))
}

func (n processIn) Usage(ctx context.Context, key string) (snapshot.Usage, error) {
	if n.had(key) {
		return snapshot.Usage{Size: 4096, Inodes: 3}, nil
	}
	return n.Store.Usage(ctx, key)
}

func (n processIn) had(key string) bool {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	return slices.ContainsFunc(n.p.had, func(i snapshot.Info) bool { return i.Name == key })
}

func (n processIn) Remove(ctx context.Context, key string) error {
	if err := n.p.called(ctx, "Remove", key); err != nil {
		return err
	}
	if n.had(key) {
		n.p.set(func() { n.p.had = slices.DeleteFunc(n.p.had, func(i snapshot.Info) bool { return i.Name == key }) })
		return nil
	}
	return n.Store.Remove(ctx, key)
}

// List heeds no filter, as some do not.
func (n processIn) List(ctx context.Context, _ ...string) iter.Seq2[snapshot.Info, error] {
	n.p.mu.Lock()
	had := slices.Clone(n.p.had)
	n.p.mu.Unlock()
	return func(yield func(snapshot.Info, error) bool) {
		for i, err := range n.Store.List(ctx) {
			if !yield(i, err) {
				return
			}
		}
		for _, i := range had {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// withTheirs adds an external snapshotter, whose snapshots another store has.
func withTheirs(t testing.TB, cfg *Config, needs *Needs) *process {
	behind := openTest(t, testConfig(t), testNeeds(t))
	p := &process{Stores: behind}
	cfg.Proxies = map[string]Proxy{theirs: {
		Address: "/run/theirs.sock", Platform: "linux/s390x",
		Exports: map[string]string{"enable_remote_snapshot_annotations": "true"}, Capabilities: append(capabilities(behind.drivers[Overlayfs].Traits()), "else"),
	}}
	needs.Proxies = map[string]snapshot.Stores{theirs: p}
	return p
}

func openTheirs(t testing.TB) (*Store, *process) {
	cfg, needs := testConfig(t), testNeeds(t)
	p := withTheirs(t, &cfg, &needs)
	return openTest(t, cfg, needs), p
}

func inTheirs(t testing.TB, s *Store, scope namespace.Scope) outside {
	t.Helper()
	n, err := s.In(scope, theirs)
	if err != nil {
		t.Fatalf("In: %v", err)
	}
	return n.(outside)
}

func TestExternalSnapshots(t *testing.T) {
	snapshottest.Run(t, func(t *testing.T, leases lease.Registry) snapshottest.Fixture {
		cfg, needs := testConfig(t), testNeeds(t)
		needs.Leases = leases
		withTheirs(t, &cfg, &needs)
		s := openTest(t, cfg, needs)
		return snapshottest.Fixture{
			Stores: s, Snapshotter: theirs, Traits: s.externals[theirs].Traits().Traits, Members: s, Holder: s, Meter: s,
		}
	})
}

func TestExternalLayers(t *testing.T) {
	difftest.Run(t, func(t *testing.T, blobs content.Stores) difftest.Fixture {
		cfg, needs := testConfig(t), testNeeds(t)
		needs.Content = blobs
		withTheirs(t, &cfg, &needs)
		s := openTest(t, cfg, needs)
		return difftest.Fixture{Services: s.Layers(), Tree: trees{s: s, blobs: blobs, of: theirs}.inOrder}
	})
}

func TestExternalIsToldNamesAndInheritedLabels(t *testing.T) {
	s, p := openTheirs(t)
	n := inTheirs(t, s, one)
	labels := map[string]string{"containerd.io/snapshot/a": "1", "mine": "2", "containerd.io/snapshot.other": "3"}
	if _, err := n.Prepare(t.Context(), "key/with/slashes", "", snapshot.Options{Labels: labels}); err != nil {
		t.Fatal(err)
	}
	keys := p.calls("Prepare")
	if len(keys) != 1 || keys[0] != "one/1/key/with/slashes" {
		t.Fatalf("it is called %q", keys)
	}
	there, err := p.Stores.In(one, Overlayfs)
	if err != nil {
		t.Fatal(err)
	}
	want := func(what string, want map[string]string) {
		t.Helper()
		i, err := there.Stat(t.Context(), keys[0])
		if err != nil || fmt.Sprint(i.Labels) != fmt.Sprint(want) {
			t.Errorf("after %s it has labels %v, %v; want %v", what, i.Labels, err, want)
		}
	}
	want("Prepare", map[string]string{"containerd.io/snapshot/a": "1"})
	update := func(labels map[string]string, fields ...string) {
		t.Helper()
		if _, err := n.Update(t.Context(), snapshot.Info{Name: "key/with/slashes", Labels: labels}, fields...); err != nil {
			t.Fatal(err)
		}
	}
	update(map[string]string{"mine": "9"}, "labels.mine")
	want("an update of another", map[string]string{"containerd.io/snapshot/a": "1"})
	update(map[string]string{"containerd.io/snapshot/b": "2", "mine": "3"}, "labels.containerd.io/snapshot/b", "labels.mine")
	want("an update of one", map[string]string{"containerd.io/snapshot/a": "1", "containerd.io/snapshot/b": "2"})
	update(map[string]string{"containerd.io/snapshot/c": "3", "mine": "4"})
	want("an update of all", map[string]string{"containerd.io/snapshot/c": "3"})
	// What it says besides is among the labels that clients see.
	if _, err := there.Update(t.Context(), snapshot.Info{Name: keys[0], Labels: map[string]string{"its": "own", "mine": "its"}}); err != nil {
		t.Fatal(err)
	}
	i, err := n.Stat(t.Context(), "key/with/slashes")
	if err != nil || i.Labels["its"] != "own" || i.Labels["mine"] != "4" || i.Name != "key/with/slashes" {
		t.Errorf("Stat: %+v, %v", i, err)
	}
}

func TestExternalPlugins(t *testing.T) {
	s, _ := openTheirs(t)
	for _, p := range s.Plugins() {
		if p.ID == theirs {
			want := fmt.Sprintf("{io.containerd.snapshotter.v1 theirs [] [linux/s390x] map[enable_remote_snapshot_annotations:true] %v }", s.cfg.Proxies[theirs].Capabilities)
			if got := fmt.Sprint(p); got != want {
				t.Errorf("it is described as %s, want %s", got, want)
			}
			return
		}
	}
	t.Error("it is not among the plugins")
}

func TestExternalConfigIsChecked(t *testing.T) {
	cfg := Default()
	cfg.Proxies = map[string]Proxy{
		"good": {Address: "/run/good.sock"}, Overlayfs: {Address: "/x"}, "a/b": {Address: "relative"},
		"long": {Address: "/" + strings.Repeat("x", 200), Platform: "no/such/platform/at/all"},
	}
	err := cfg.Check()
	for _, want := range []string{"proxy.overlayfs: a snapshotter of this daemon", "proxy.a/b: a name", "proxy.a/b: address", "proxy.long: address", "proxy.long: platform"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check: %v, want %q", err, want)
		}
	}
	if strings.Contains(fmt.Sprint(err), "proxy.good") {
		t.Errorf("Check: %v", err)
	}
}

// wantRemoved waits until the collector has had something removed.
func wantRemoved(t *testing.T, s *Store, p *process, keys ...string) {
	t.Helper()
	e := s.externals[theirs]
	waitFor(t, "the removal of "+fmt.Sprint(keys), func() bool {
		err := s.emptyExternal(t.Context(), e)
		if err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("emptyExternal: %v", err)
		}
		return !slices.ContainsFunc(keys, func(k string) bool { return !slices.Contains(p.calls("Remove"), k) })
	})
	all, err := s.trashed()
	if err != nil || len(all) > 0 {
		t.Errorf("trash: %v, %v", all, err)
	}
}

func removeAll(t *testing.T, n snapshot.Store, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if err := n.Remove(t.Context(), k); err != nil {
			t.Fatalf("Remove(%q): %v", k, err)
		}
	}
}

func TestExternalChainIsRemovedFromItsEnd(t *testing.T) {
	s, p := openTheirs(t)
	n := inTheirs(t, s, one)
	// The child is older than its parent, which it is put on later.
	prepare(t, n, "child key", "")
	prepare(t, n, "base key", "")
	commitTo(t, n, "base", "base key", "")
	commitTo(t, n, "child", "child key", "base")
	removeAll(t, n, "child", "base")
	wantRemoved(t, s, p, "one/1/child", "one/2/base")
}

// TestExternalTargetIsAdopted: what it has already becomes a snapshot, as long as
// any namespace has it.
func TestExternalTargetIsAdopted(t *testing.T) {
	s, p := openTheirs(t)
	made := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	has := func(name, parent, target string) snapshot.Info {
		return snapshot.Info{
			Kind: snapshot.Committed, Name: name, Parent: parent, CreatedAt: made, UpdatedAt: made,
			Labels: map[string]string{snapshot.LabelTarget: target, "its": "own", "long": strings.Repeat("x", 5000)},
		}
	}
	p.had = []snapshot.Info{
		{Kind: snapshot.Active, Name: "not committed", Labels: map[string]string{snapshot.LabelTarget: "chain"}},
		has("sha256:chain", "", "chain"), has("sha256:top", "sha256:chain", "top"), has("sha256:stray", "elsewhere", "stray"),
	}
	prepareFor := func(n snapshot.Store, target, parent string) error {
		o := snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: target, "mine": "2"}}
		_, err := n.Prepare(t.Context(), "extract "+target, parent, o)
		return err
	}
	for _, scope := range []namespace.Scope{one, two} {
		n := inTheirs(t, s, scope)
		for _, c := range []struct{ target, parent string }{{"chain", ""}, {"top", "chain"}} {
			if err := prepareFor(n, c.target, c.parent); !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Fatalf("Prepare for %s: %v", c.target, err)
			}
		}
		i, err := n.Stat(t.Context(), "top")
		if err != nil || i.Kind != snapshot.Committed || i.Parent != "chain" || !i.CreatedAt.Equal(made) || i.Labels["its"] != "own" || i.Labels["mine"] != "2" || i.Labels["long"] != "" {
			t.Errorf("Stat: %+v, %v", i, err)
		}
		if u, err := n.Usage(t.Context(), "top"); err != nil || u.Size != 4096 {
			t.Errorf("Usage: %+v, %v", u, err)
		}
	}
	n := inTheirs(t, s, one)
	if err := prepareFor(n, "stray", "chain"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a target with another parent: %v", err)
	}
	removeAll(t, n, "top", "chain")
	waitFor(t, "the first removal", func() bool {
		all, err := s.trashed()
		return s.emptyExternal(t.Context(), s.externals[theirs]) == nil && err == nil && len(all) == 0
	})
	if len(p.had) != 4 {
		t.Fatalf("what another namespace has is gone: %v", p.had)
	}
	removeAll(t, inTheirs(t, s, two), "top", "chain")
	wantRemoved(t, s, p, "sha256:top", "sha256:chain")
}

func TestExternalWithATargetThatIsNowhere(t *testing.T) {
	s, p := openTheirs(t)
	exists := fmt.Errorf("so it says: %w", errdefs.ErrAlreadyExists)
	p.wrong = func(_ context.Context, call, _ string) error {
		if call == "Prepare" {
			return exists
		}
		return nil
	}
	n := inTheirs(t, s, one)
	for target, want := range map[string]error{"": errdefs.ErrUnknown, "nowhere": errdefs.ErrNotFound} {
		_, err := n.Prepare(t.Context(), "key", "", snapshot.Options{Labels: map[string]string{snapshot.LabelTarget: target}})
		if !errors.Is(err, want) || errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("with target %q: %v, want %v", target, err, want)
		}
	}
	if _, err := s.In(one, theirs); err != nil {
		t.Error(err)
	}
}

// TestExternalThatIsAway: its calls fail soon and say why, its records are there,
// and others do not notice.
func TestExternalThatIsAway(t *testing.T) {
	s, p := openTheirs(t)
	n, ours := inTheirs(t, s, one), in(t, s, one)
	prepare(t, n, "key", "")
	prepare(t, n, "gone", "")
	removeAll(t, n, "gone")
	hung := make(chan struct{})
	p.set(func() {
		p.wrong = func(ctx context.Context, call, _ string) error {
			switch call {
			case "Mounts": // hangs
				close(hung)
				<-ctx.Done()
				return ctx.Err()
			}
			return fmt.Errorf("connect: %w", errdefs.ErrUnavailable)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.Mounts(ctx, "key")
		ended <- err
	}()
	<-hung
	for i := range 8 {
		_, err := n.Prepare(t.Context(), fmt.Sprint("new ", i), "", snapshot.Options{})
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "snapshotter theirs does not answer") {
			t.Errorf("Prepare: %v", err)
		}
	}
	if got := len(p.calls("Prepare")); got > 6 {
		t.Errorf("it was asked %d times, want it left alone", got)
	}
	if err := s.emptyExternal(t.Context(), s.externals[theirs]); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("emptyExternal: %v", err)
	}
	prepare(t, ours, "mine", "")
	removeAll(t, ours, "mine")
	if err := s.empty(t.Context()); err != nil {
		t.Errorf("empty: %v", err)
	}
	var names []string
	for i, err := range n.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, i.Name)
	}
	if !slices.Equal(names, []string{"key"}) {
		t.Errorf("List: %q", names)
	}
	for m, err := range s.Usage(t.Context(), one, theirs) {
		if err != nil || m.Unknown == "" && m.Size == 0 {
			t.Errorf("Usage: %+v, %v", m, err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a call that hung: %v", err)
	}
}

// TestExternalOutlivesACrash: what was begun and not noted as done is removed
// there, or found done.
func TestExternalOutlivesACrash(t *testing.T) {
	cfg, needs := testConfig(t), testNeeds(t)
	p := withTheirs(t, &cfg, &needs)
	died := errors.New("the power is off")
	s, err := open(cfg, needs, driver.Files{}, kernel.New())
	if err != nil {
		t.Fatal(err)
	}
	n := inTheirs(t, s, one)
	prepare(t, n, "key", "")
	prepare(t, n, "lost", "")
	p.set(func() {
		p.wrong = func(_ context.Context, call, _ string) error {
			if call == "Committed" {
				return died // it was done, and nobody heard of it
			}
			return nil
		}
	})
	for _, key := range []string{"key", "lost"} {
		if err := n.Commit(t.Context(), key+" done", key, snapshot.Options{}); !errors.Is(err, died) {
			t.Fatalf("Commit: %v", err)
		}
	}
	// A snapshot that was made there, and no record was written.
	r := record{ID: s.last.Add(1), Kind: snapshot.Active}
	own := n.known("half", r, nil)
	if err := s.begin(t.Context(), begun{Snapshotter: theirs, Ref: own.Ref, Name: "half"}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.e.Prepare(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	p.set(func() { p.wrong = nil })
	s = openTest(t, cfg, needs)
	n = inTheirs(t, s, one)
	if i, err := n.Stat(t.Context(), "key"); err != nil || i.Kind != snapshot.Active {
		t.Errorf("Stat of what was committed and nobody heard of = %+v, %v", i, err)
	}
	if err := n.Commit(t.Context(), "another", "key", snapshot.Options{}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "key done") {
		t.Errorf("Commit to another name: %v", err)
	}
	commitTo(t, n, "key done", "key", "")
	prepare(t, n, "child", "key done")
	removeAll(t, n, "lost")
	wantRemoved(t, s, p, own.Key, "one/2/lost done")
	prepare(t, n, "half", "")
	if keys := p.calls("Prepare"); keys[len(keys)-1] == own.Key {
		t.Errorf("the key %s is used again", own.Key)
	}
}

func TestExternalThatLies(t *testing.T) {
	s, p := openTheirs(t)
	n := inTheirs(t, s, one)
	for what, lie := range map[string][]mount.Mount{
		"many":      make([]mount.Mount, 10_000),
		"long":      {{Type: "bind", Source: strings.Repeat("x", 1<<20)}},
		"zero byte": {{Type: "bind", Source: "/x", Options: []string{"a\x00b"}}},
	} {
		p.set(func() { p.lie = lie })
		if _, err := n.Prepare(t.Context(), "key", "", snapshot.Options{}); !errors.Is(err, errdefs.ErrUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	p.set(func() { p.lie = nil })
	prepare(t, n, "key", "")
	if got := len(p.calls("Prepare")); got != 4 {
		t.Errorf("%d calls", got)
	}
	wantRemoved(t, s, p, "one/1/key", "one/2/key", "one/3/key")
	// What is described to this namespace says nothing to another.
	m, err := n.Mounts(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := s.described("two", m); ok {
		t.Error("another namespace can name the snapshot by its mounts")
	}
	if of, f, ok := s.described("one", m); !ok || of != theirs || !f.Write {
		t.Errorf("described: %v, %v, %v", of, f, ok)
	}
}
