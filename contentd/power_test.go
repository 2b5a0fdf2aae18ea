package contentd

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/kv"
)

var errPower = errors.New("the power is off")

// A power is a disk and a database whose machine stops before a change. Of what
// was written until then only what was synced is left, with the names that were
// given since, or without them: a file system may do either. Left to chance, it
// is any of the names, and any pages of the bytes.
//
// Only the records are real: that they are durable when they say so is
// tested where they are made.
type power struct {
	osDisk
	t         testing.TB
	root      string
	left      *image // the disk as it is found after the cut
	keepNames bool
	chance    *rand.Rand // if set, it decides of every name, page and record

	// mu guards the fields below it.
	mu      sync.Mutex
	cutAt   int    // change before which the power goes, from 1; 0 is never
	failAt  int    // change that fails, and nothing else does; 0 is none
	failOn  string // what fails next time, and nothing else does
	changes int
	live    map[string]*inode // names as they are
	durable map[string]*inode // names as they are found afterwards
	moves   map[string]string // to from, of renames that are not durable
}

// An inode is a file, whatever its name; a directory has no bytes.
type inode struct {
	dir    bool
	synced []byte
	notes  map[string][]byte // that were synced
}

// newPower finds root as it was left: durable.
func newPower(t testing.TB, root string, cutAt int, keepNames bool) *power {
	p := &power{
		t: t, root: root, keepNames: keepNames, cutAt: cutAt,
		live: map[string]*inode{}, moves: map[string]string{},
	}
	for _, top := range []string{"blobs", "ingest", "quarantine", "rebuild"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || e.IsDir() {
				p.live[path] = &inode{dir: true}
				return err
			}
			b, err := os.ReadFile(path)
			p.live[path] = &inode{synced: b, notes: rawNotes(t, path)}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p.durable = maps.Clone(p.live)
	return p
}

// open opens a store on it.
func (p *power) open(cfg Config, needs Needs) (*Store, error) {
	return open(cfg, needs, p, func(db *kv.DB) database { return powerDB{db, p} })
}

// change counts one, and is the error of each from the cut on. At the cut it
// makes the image.
func (p *power) change(what string) error {
	p.changes++
	if p.changes == p.failAt || p.failOn == what {
		p.failOn = "nothing"
		return unix.EIO
	}
	if p.cutAt == 0 || p.changes < p.cutAt {
		return nil
	}
	if p.changes == p.cutAt {
		p.makeImage()
	}
	return errPower
}

// cut turns the power off now.
func (p *power) cut() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAt = p.changes + 1
	p.makeImage()
	return nil
}

func (p *power) makeImage() {
	names := p.durable
	if p.keepNames {
		names = p.live
	}
	if p.chance != nil {
		names = p.someNames()
	}
	p.left = &image{files: map[string]inode{}}
	for _, path := range slices.Sorted(maps.Keys(names)) {
		i := *names[path]
		if p.chance != nil && !i.dir {
			i.synced = p.somePages(i.synced, p.written(names[path]))
		}
		p.left.files[strings.TrimPrefix(path, p.root)] = i
	}
}

// someNames are those that are durable, and some of the changes since.
func (p *power) someNames() map[string]*inode {
	names := maps.Clone(p.durable)
	set := func(path string) {
		if i := p.live[path]; i != nil {
			names[path] = i
		} else {
			delete(names, path)
		}
	}
	paths := maps.Clone(p.live)
	maps.Copy(paths, p.durable)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if p.live[path] == p.durable[path] || p.chance.IntN(2) == 0 {
			continue
		}
		set(path)
		// A rename is one change.
		for to, from := range p.moves {
			if to == path || from == path {
				set(to)
				set(from)
			}
		}
	}
	return names
}

// written is what is in a file now, synced or not.
func (p *power) written(i *inode) []byte {
	for path, other := range p.live {
		if other == i {
			if b, err := os.ReadFile(path); err == nil {
				return b
			}
		}
	}
	return i.synced
}

// somePages makes a file of what was synced and what was written: of a size in
// between, and each page of the one or the other, or of nothing.
func (p *power) somePages(synced, written []byte) []byte {
	least, most := min(len(synced), len(written)), max(len(synced), len(written))
	b := make([]byte, least+[]int{0, most - least, p.chance.IntN(most - least + 1)}[p.chance.IntN(3)])
	const page = 4096
	for at := 0; at < len(b); at += page {
		from := synced
		if p.chance.IntN(2) == 0 {
			from = written
		}
		if at < len(from) {
			copy(b[at:min(at+page, len(b))], from[at:])
		}
	}
	return b
}

// An image is a disk as it is found after the power went, by path below the
// root. The database has stood still since then.
type image struct{ files map[string]inode }

// restore makes the files of root what they were.
func (i *image) restore(t testing.TB, root string) {
	t.Helper()
	for _, top := range []string{"blobs", "ingest", "quarantine", "rebuild"} {
		if err := os.RemoveAll(filepath.Join(root, top)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(i.files)) {
		f, path := i.files[path], filepath.Join(root, path)
		// A name in a directory that has none is in no directory.
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			continue
		}
		var err error
		if f.dir {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.WriteFile(path, f.synced, 0o600)
			for name, value := range f.notes {
				err = errors.Join(err, osDisk{}.SetNote(path, name, value))
			}
			err = errors.Join(err, os.Chmod(path, 0o400))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (p *power) do(what string, f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.change(what); err != nil {
		return err
	}
	return f()
}

func (p *power) MkdirAll(dir string) error {
	return p.do("mkdir", func() error {
		if err := p.osDisk.MkdirAll(dir); err != nil {
			return err
		}
		if dir != p.root && p.live[dir] == nil {
			p.live[dir] = &inode{dir: true}
		}
		return nil
	})
}

func (p *power) Create(name string) (f file, err error) {
	err = p.do("create", func() error {
		inner, err := p.osDisk.Create(name)
		if err != nil {
			return err
		}
		p.live[name] = &inode{}
		f = powerFile{inner, p, p.live[name], name}
		return nil
	})
	return f, err
}

func (p *power) Reopen(name string) (f file, err error) {
	err = p.do("reopen", func() error {
		inner, err := p.osDisk.Reopen(name)
		if err == nil {
			f = powerFile{inner, p, p.live[name], name}
		}
		return err
	})
	return f, err
}

func (p *power) Seal(name string) (f file, held func() error, err error) {
	err = p.do("seal", func() error {
		inner, still, err := p.osDisk.Seal(name)
		if err == nil {
			f, held = powerFile{inner, p, p.live[name], name}, still
		}
		return err
	})
	return f, held, err
}

func (p *power) Rename(from, to string) error {
	return p.do("rename", func() error {
		if err := p.osDisk.Rename(from, to); err != nil {
			return err
		}
		if p.live[from] == nil {
			return nil // a database, which is real
		}
		p.live[to] = p.live[from]
		delete(p.live, from)
		p.moves[to] = from
		return nil
	})
}

func (p *power) Remove(name string) error {
	return p.do("remove", func() error {
		if err := p.osDisk.Remove(name); err != nil {
			return err
		}
		delete(p.live, name)
		return nil
	})
}

// SyncDir makes the names in a directory durable. A rename is one change, also
// where it is between two directories.
func (p *power) SyncDir(dir string) error {
	return p.do("syncdir", func() error {
		if err := p.osDisk.SyncDir(dir); err != nil {
			return err
		}
		in := func(path string) bool { return filepath.Dir(path) == dir }
		for path := range p.durable {
			if in(path) && p.live[path] == nil {
				delete(p.durable, path)
			}
		}
		for path, i := range p.live {
			if !in(path) {
				continue
			}
			p.durable[path] = i
			if from, ok := p.moves[path]; ok {
				delete(p.moves, path)
				if p.live[from] == nil {
					delete(p.durable, from)
				}
			}
		}
		return nil
	})
}

func (p *power) SetNote(path, name string, value []byte) error {
	return p.do("note", func() error { return p.osDisk.SetNote(path, name, value) })
}

func (p *power) RemoveNote(path, name string) error {
	return p.do("unnote", func() error { return p.osDisk.RemoveNote(path, name) })
}

// rawNotes reads the attributes of a file.
func rawNotes(t testing.TB, path string) map[string][]byte {
	names := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatalf("attributes of %s: %v", path, err)
	}
	notes := map[string][]byte{}
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("attribute %s of %s: %v", name, path, err)
		}
		notes[name] = value[:n]
	}
	return notes
}

// A powerFile is a file on such a disk.
type powerFile struct {
	file
	p    *power
	i    *inode
	name string // when it was opened
}

func (f powerFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.do("write", func() (err error) {
		n, err = f.file.WriteAt(b, off)
		return err
	})
	return n, err
}

func (f powerFile) Truncate(size int64) error {
	return f.p.do("truncate", func() error { return f.file.Truncate(size) })
}

func (f powerFile) Chmod(mode fs.FileMode) error {
	return f.p.do("chmod", func() error { return f.file.Chmod(mode) })
}

func (f powerFile) Sync() error {
	return f.p.do("sync", func() error {
		if err := f.file.Sync(); err != nil {
			return err
		}
		fi, err := f.file.Stat()
		if err != nil {
			return err
		}
		f.i.notes = rawNotes(f.p.t, f.name)
		f.i.synced = make([]byte, fi.Size())
		if fi.Size() > 0 {
			_, err = f.file.ReadAt(f.i.synced, 0)
		}
		return err
	})
}

// A powerDB is the records of such a machine.
type powerDB struct {
	database
	p *power
}

func (db powerDB) Update(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return db.do("update", func() error { return db.database.Update(ctx, fn) })
}

func (db powerDB) Release(ctx context.Context, fn func(tx *kv.Tx) error) error {
	return db.do("release", func() error { return db.database.Release(ctx, fn) })
}

// do commits, or does not, or does and cannot say so any more.
func (db powerDB) do(what string, commit func() error) error {
	late := false
	err := db.p.do(what, func() error { return nil })
	if err != nil {
		db.p.mu.Lock()
		late = db.p.changes == db.p.cutAt && db.p.chance != nil && db.p.chance.IntN(2) == 0
		db.p.mu.Unlock()
	}
	if err == nil || late {
		err = errors.Join(err, commit())
	}
	return err
}
