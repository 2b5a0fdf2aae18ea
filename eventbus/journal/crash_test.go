package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A memDisk is a disk that can lose power and fail.
type memDisk struct {
	mu    sync.Mutex
	names map[string]*memFile // as they are
	kept  map[string]*memFile // as they are after a power failure
	left  int                 // changes until it stops; negative is never
	fault error               // what it says then
	once  bool                // and that it goes on afterwards,
	again int                 // for so many changes; 0 is for ever

	full     bool   // nothing new is made, of which fault is said
	badWrite error  // what every write of records says
	badName  string // file of which the 4096 bytes at badOff cannot be read
	badOff   int64
}

type memFile struct {
	d    *memDisk
	now  []byte
	kept []byte // what was synced
}

func newMemDisk() *memDisk {
	return &memDisk{names: map[string]*memFile{}, kept: map[string]*memFile{}, left: -1}
}

func (d *memDisk) change() error {
	if d.left == 0 {
		if d.once {
			d.once, d.left = false, cmp.Or(d.again, -1)
		}
		return d.fault
	}
	if d.left > 0 {
		d.left--
	}
	return nil
}

// crash is what a power failure leaves: of what was not synced, any part.
func (d *memDisk) crash(random *rand.Rand) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newMemDisk()
	after.badName, after.badOff = d.badName, d.badOff
	names := maps.Clone(d.kept)
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if d.names[name] != d.kept[name] && random.IntN(2) == 0 {
			names[name] = d.names[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.kept)) {
		if d.names[name] == nil && random.IntN(2) == 0 {
			delete(names, name)
		}
	}
	for name, f := range names {
		b := bytes.Clone(f.kept)
		size := len(f.kept)
		if random.IntN(2) == 0 {
			size = len(f.now)
		}
		b = append(b, make([]byte, max(size-len(b), 0))...)[:size]
		const sector = 512
		for off := 0; off < size; off += sector {
			if random.IntN(2) == 0 && off < len(f.now) {
				copy(b[off:], f.now[off:min(off+sector, len(f.now))])
			}
		}
		g := &memFile{d: after, now: b, kept: bytes.Clone(b)}
		after.names[name], after.kept[name] = g, g
	}
	return after
}

func (d *memDisk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names)), nil
}

func (d *memDisk) Create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] != nil {
		return nil, fs.ErrExist
	}
	if d.full {
		return nil, d.fault
	}
	if err := d.change(); err != nil {
		return nil, err
	}
	d.names[name] = &memFile{d: d}
	return d.names[name], nil
}

func (d *memDisk) Open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.names[name]; f != nil {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (d *memDisk) ReadFile(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.names[name]; f != nil {
		return bytes.Clone(f.now), nil
	}
	return nil, fs.ErrNotExist
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[from] == nil {
		return fs.ErrNotExist
	}
	if err := d.change(); err != nil {
		return err
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return fs.ErrNotExist
	}
	if err := d.change(); err != nil {
		return err
	}
	delete(d.names, name)
	return nil
}

func (d *memDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change(); err != nil {
		return err
	}
	d.kept = maps.Clone(d.names)
	return nil
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	if f.d.badName != "" && f.d.names[f.d.badName] == f && off < f.d.badOff+4096 && off+int64(len(b)) > f.d.badOff {
		return 0, unix.EIO
	}
	n := copy(b, f.now[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	n := len(b)
	err := f.d.change()
	if off >= headerSize {
		err = cmp.Or(err, f.d.badWrite)
	}
	if err != nil {
		n /= 2 // some of it is there even so
	}
	f.now = append(f.now, make([]byte, max(int(off)+n-len(f.now), 0))...)
	copy(f.now[off:], b[:n])
	return n, err
}

func (f *memFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.change(); err != nil {
		return err
	}
	f.kept = bytes.Clone(f.now)
	return nil
}

func (f *memFile) Reserve(size int64) error { return f.resize(size, false) }
func (f *memFile) Truncate(n int64) error   { return f.resize(n, true) }

func (f *memFile) resize(size int64, shrink bool) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.change(); err != nil {
		return err
	}
	if grow := int(size) - len(f.now); grow > 0 {
		f.now = append(f.now, make([]byte, grow)...)
	} else if shrink {
		f.now = bytes.Clone(f.now[:size])
	}
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.now)), nil
}

func (f *memFile) Close() error { return nil }

func memOptions(d *memDisk) Options {
	return Options{
		Dir: "memory", Bytes: 5 * 8 << 10, segment: 8 << 10, Age: 72 * time.Hour, disk: d,
		Log: slog.New(slog.DiscardHandler),
	}
}

// A life is what a publisher and a subscriber saw of a journal.
type life struct {
	acked map[string]uint64 // ids that were acknowledged
	told  map[uint64]string // sequences that somebody was told, in this epoch
	epoch string
	first uint64 // what is before was dropped
	n     int
}

// live appends until the disk stops, across some segments.
func (l *life) live(d *memDisk, stop int) {
	o := memOptions(d)
	o.Told = func(records []Record) {
		for _, r := range records {
			l.told[r.Sequence] = r.ID
		}
	}
	j, err := Open(o)
	if err != nil && d.left < 0 {
		j, err = Open(o) // the fault is over
	}
	if err != nil {
		return
	}
	defer func() { l.first, _ = j.Bounds() }()
	if l.epoch == "" {
		l.epoch = j.Epoch()
	}
	for range stop {
		l.n++
		var records []Record
		for k := range 1 + l.n%3 {
			records = append(records, Record{ID: fmt.Sprint(l.n, "/", k), Body: bytes.Repeat([]byte{byte(l.n)}, 1_200+l.n%7*10)})
		}
		s, err := j.Append(records...)
		if err != nil {
			continue
		}
		for i, r := range records {
			l.acked[r.ID] = s[i]
		}
	}
}

// inspect opens what is left and says what is wrong with it.
func (l *life) inspect(d *memDisk) error {
	j, err := Open(memOptions(d))
	if err != nil {
		return err
	}
	if l.epoch != "" && j.Epoch() != l.epoch {
		if len(l.acked) > 0 {
			return fmt.Errorf("epoch %s became %s", l.epoch, j.Epoch())
		}
		return nil
	}
	have := map[string]uint64{}
	r := j.Reader(1)
	var last uint64
	for {
		records, err := r.Next(50)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			break
		}
		for _, found := range records {
			if found.Sequence <= last {
				return fmt.Errorf("%d comes after %d", found.Sequence, last)
			}
			last = found.Sequence
			if was, ok := l.told[last]; ok && was != found.ID {
				return fmt.Errorf("sequence %d was told as %s and is %s", last, was, found.ID)
			}
			if other, ok := have[found.ID]; ok {
				return fmt.Errorf("%s has sequences %d and %d", found.ID, other, last)
			}
			have[found.ID] = last
		}
	}
	for id, s := range l.acked {
		if got, ok := have[id]; s >= l.first && (!ok || got != s) {
			return fmt.Errorf("%s was acknowledged as %d and is %d", id, s, got)
		}
	}
	s, err := j.Append(Record{ID: "new"})
	if err != nil {
		return err
	}
	l.first, _ = j.Bounds()
	if was, ok := l.told[s[0]]; ok {
		return fmt.Errorf("sequence %d was told as %s and is given out again", s[0], was)
	}
	return nil
}

// TestPowerLossAtEveryChange stops the power at every change to the disk, of the
// making of a journal, of appends across segments, and of what Open does after a
// first failure, and keeps any part of what was not synced.
func TestPowerLossAtEveryChange(t *testing.T) {
	const appends = 24
	changes := func(d *memDisk, do func()) int {
		d.left = 1 << 30
		do()
		return 1<<30 - d.left
	}
	whole := newMemDisk()
	l := &life{acked: map[string]uint64{}, told: map[uint64]string{}}
	all := changes(whole, func() { l.live(whole, appends) })
	t.Logf("%d changes", all)
	for n := range all + 1 {
		for seed := range uint64(4) {
			d := newMemDisk()
			d.left, d.fault = n, errors.New("no power")
			l := &life{acked: map[string]uint64{}, told: map[uint64]string{}}
			l.live(d, appends)
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			after := d.crash(random)
			// Open may be cut as well.
			again := after
			again.left, again.fault = random.IntN(12), errors.New("no power")
			_, _ = Open(memOptions(again))
			again = again.crash(random)
			if err := l.inspect(again); err != nil {
				t.Fatalf("power lost at change %d, seed %d: %v", n, seed, err)
			}
		}
	}
}

// TestAFaultAtEveryChange fails one change of the disk. What is acknowledged is
// kept, what is not can be appended again, and the journal goes on by itself.
func TestAFaultAtEveryChange(t *testing.T) {
	const appends = 24
	for _, fault := range []error{unix.ENOSPC, unix.EIO} {
		for n := range 130 {
			d := newMemDisk()
			d.left, d.fault, d.once = n, fault, true
			l := &life{acked: map[string]uint64{}, told: map[uint64]string{}}
			l.live(d, appends)
			if len(l.acked) == 0 && n > 10 {
				t.Fatalf("%v at change %d: nothing was acknowledged", fault, n)
			}
			d.left = -1
			if err := l.inspect(d); err != nil {
				t.Fatalf("%v at change %d: %v", fault, n, err)
			}
			if err := l.inspect(d.crash(rand.New(rand.NewPCG(1, uint64(n))))); err != nil {
				t.Fatalf("%v at change %d, then power lost: %v", fault, n, err)
			}
		}
	}
}

// TestPowerLossAfterAFault fails one change of the disk and stops the power soon
// after: while the journal mends what the fault left.
func TestPowerLossAfterAFault(t *testing.T) {
	for n := range 130 {
		for more := range 8 {
			d := newMemDisk()
			d.left, d.fault, d.once, d.again = n, unix.EIO, true, 1+more
			l := &life{acked: map[string]uint64{}, told: map[uint64]string{}}
			l.live(d, 24)
			first := l.first
			for seed := range uint64(2) {
				after := d.crash(rand.New(rand.NewPCG(seed, uint64(n))))
				l.first = first
				if err := l.inspect(after); err != nil {
					t.Fatalf("a fault at change %d, power lost after %d more, seed %d: %v", n, 1+more, seed, err)
				}
			}
		}
	}
}
