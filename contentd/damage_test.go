package contentd

import (
	"encoding"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
	"github.com/gantryd/gantry/services/kv"
)

// families are the first parts of keys that damage can be done to.
var families = []func(part string) []byte{
	func(part string) []byte { return kv.Key("blob", one.Name, part) },
	func(part string) []byte { return kv.Key("have", part, one.Name) },
	func(part string) []byte { return kv.Key("trash", part) },
	func(part string) []byte { return kv.Key("ingest", one.Name, part) },
	func(part string) []byte { return kv.Key("member", one.Name, "ingests", "r", "lease", part) },
	func(part string) []byte { return kv.Key("lease", one.Name, "lease", "0000000000000001", part, "r") },
	func(part string) []byte { return kv.Key("blob", part) },
	func(part string) []byte { return kv.Key("have", part) },
	func(part string) []byte { return kv.Key("ingest", part) },
	func(part string) []byte { return kv.Key("member", one.Name, "ingests", "r", part) },
	func(part string) []byte { return kv.Key("lease", one.Name, "lease", "0000000000000001", part) },
}

// FuzzDatabase puts a row into the database that contentd would not, and has it
// do all that it does: nothing panics, no file elsewhere is touched, and others
// go on.
func FuzzDatabase(f *testing.F) {
	d := digest.FromString("x").String()
	for family := range families {
		for _, part := range []string{d, "", "x", "sha256:../../../keep", "sha512:" + strings.Repeat("a", 64), "\x00\xff"} {
			f.Add(byte(family), part, []byte("null"))
		}
	}
	f.Add(byte(0), d, []byte(`{"size":-1,"labels":{"":""}}`))
	f.Add(byte(1), d, []byte(`-9223372036854775808`))
	f.Add(byte(2), d, []byte(`{"size":"x"}`))
	f.Add(byte(3), "r", []byte(`{"file":"00112233445566778899aabbccddeeff","saved":{"offset":-1,"algorithm":"md5","state":"AA=="}}`))
	f.Add(byte(3), "r", []byte(`{"file":"../../keep","expires":"0001-01-01T00:00:00Z"}`))
	s := openStore(f, quickConfig(f), nil)
	keep := filepath.Join(s.cfg.Root, "keep")
	writeFile(f, keep)
	f.Fuzz(func(t *testing.T, family byte, part string, value []byte) {
		key := families[int(family)%len(families)](part)
		if err := s.kv.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put(key, value) }); err != nil {
			t.Skip(err)
		}
		doAll(t, s, part)
		must(t, s.kv.Release(t.Context(), func(tx *kv.Tx) error { return tx.Delete(key) }))
		must(t, s.reconcile())
		s.mu.Lock()
		clear(s.lost)
		s.mu.Unlock()
		remove(t, s, two, put(t, s, two, body[:100]))
		s.sweep(t.Context())
		if !isThere(t, keep) {
			t.Fatal("a file that is not contentd's is gone")
		}
	})
}

// doAll does what reads rows. It may fail, by kind.
func doAll(t *testing.T, s *Store, part string) {
	t.Helper()
	in := s.In(one)
	must(t, s.reconcile())
	s.sweep(t.Context())
	for _, err := range in.List(t.Context()) {
		known(t, "List", err)
	}
	_, err := in.ListStatuses(t.Context())
	known(t, "ListStatuses", err)
	_, err = s.Holdings(t.Context())
	known(t, "Holdings", err)
	_, err = s.ListMembers(t.Context(), one.Name, kept)
	known(t, "ListMembers", err)
	_, err = s.Usage(t.Context())
	known(t, "Usage", err)
	for _, repair := range []bool{false, true} {
		for _, err := range s.Check(t.Context(), fsck.Options{Deep: true, Repair: repair}) {
			known(t, "Check", err)
		}
	}
	d := digest.Digest(part)
	_, err = in.Info(t.Context(), d)
	known(t, "Info", err)
	if r, err := in.Open(t.Context(), d); err == nil {
		must(t, r.Close())
	}
	_, err = in.Status(t.Context(), part)
	known(t, "Status", err)
	if w, err := in.Writer(t.Context(), content.WriterOptions{Ref: part}); err == nil {
		must(t, w.Close())
	} else {
		known(t, "Writer", err)
	}
	known(t, "Abort", in.Abort(t.Context(), part))
	known(t, "Delete", in.Delete(t.Context(), d))
	known(t, "DropMembers", s.DropMembers(t.Context(), one.Name, kept))
}

// known wants no error, or one of a kind that callers know.
func known(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil && errdefs.IsUnknown(errdefs.Resolve(err)) {
		t.Errorf("%s: %v", what, err)
	}
}

// FuzzFileName: what is found in blobs/ is a blob of that path, or not ours; what
// is found in ingest/ is a file there, or not ours.
func FuzzFileName(f *testing.F) {
	f.Add(digest.FromString("x").Encoded())
	f.Add(newFile())
	f.Add(strings.ToUpper(newFile()))
	f.Add("..")
	f.Add("keep")
	s := &Store{cfg: Config{Root: "/root"}}
	f.Fuzz(func(t *testing.T, name string) {
		for _, a := range content.Algorithms() {
			d := digest.NewDigestFromEncoded(a, name)
			if content.CheckDigest(d) == nil && s.path(d) != "/root/blobs/"+a.String()+"/"+name {
				t.Errorf("%q becomes %q", name, s.path(d))
			}
		}
		if isFile(name) && s.ingestPath(name) != "/root/ingest/"+name {
			t.Errorf("%q becomes %q", name, s.ingestPath(name))
		}
	})
}

// FuzzSavedHash: a state that was saved goes on where it was, and one that was
// not is none.
func FuzzSavedHash(f *testing.F) {
	for _, a := range content.Algorithms() {
		h := content.NewHash(a)
		h.Write(body[:1000])
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(a), int64(1000), state)
		f.Add(string(a), int64(-1), state)
		f.Add(string(a), int64(1<<62), state[:len(state)-1])
	}
	f.Fuzz(func(t *testing.T, a string, offset int64, state []byte) {
		for _, want := range content.Algorithms() {
			h, from := restore(&saved{Offset: offset, Algorithm: digest.Algorithm(a), State: state}, want)
			if from < 0 || from > 0 && from != offset || h.Size() != want.Size() {
				t.Errorf("restore of %s at %d: %d, a hash of %d", a, offset, from, h.Size())
			}
			h.Write(body[:100])
			if fresh := want.FromBytes(body[:100]); from == 0 && digest.NewDigest(want, h) != fresh && offset != 0 {
				t.Errorf("restore of %s at %d: begins anew with something", a, offset)
			}
		}
	})
}

// FuzzRef: a ref is found by its own name and by no other, in a namespace and in
// a lease.
func FuzzRef(f *testing.F) {
	f.Add("r", "r\x00")
	f.Add("", "\x00")
	f.Add("a\x00\xffb", "a")
	f.Add(strings.Repeat("\x00", 4096), "\x01")
	f.Fuzz(func(t *testing.T, ref, other string) {
		key := ingestKey(one.Name, ref)
		if parts := kv.Parts(key); len(parts) != 3 || parts[2] != ref {
			t.Errorf("%q becomes %q", ref, parts)
		}
		if ref != other && string(ingestKey(one.Name, other)) == string(key) {
			t.Errorf("%q and %q are the same", ref, other)
		}
		m := membership{ns: one.Name, lease: kept, of: ingestOf(ref)}
		for _, key := range m.keys() {
			if len(key) <= 65_000 && len(kv.Parts(key)) != 6 {
				t.Errorf("%q becomes %q", ref, kv.Parts(key))
			}
		}
		if err := (content.WriterOptions{Ref: ref}).Check(); err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Check: %v", err)
		}
	})
}

// FuzzConfig: a text that passes for a config is one to count on.
func FuzzConfig(f *testing.F) {
	f.Add("root = '/r'\nfree_min_mib = 64\ningest_hours = 1\n")
	f.Add("root = 'r'\n")
	f.Add("root = '/r\x00'\n")
	f.Add("free_min_mib = 9223372036854775807\n")
	f.Add("free_min_mib = -1\ningest_hours = -9223372036854775808\n")
	f.Add("ingest_hours = 1e3\nsharing = 'Shared'\n")
	f.Add("[root]\nx = 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		if toml.Unmarshal([]byte(text), &c) != nil || c.Check() != nil {
			return
		}
		if !filepath.IsAbs(c.Root) || strings.Contains(c.Root, "\x00") || c.freeMin() < freeMinLeast<<20 || c.ingestAge() < time.Hour || c.Sharing.Check() != nil {
			t.Errorf("%q passes as %+v", text, c)
		}
	})
}
