package journal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func options(t testing.TB, dir string) Options {
	return Options{Dir: dir, Bytes: 64 << 20, Age: 72 * time.Hour, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func open(t testing.TB, o Options) *Journal {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return j
}

func closeIt(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func record(n int) Record {
	return Record{ID: fmt.Sprint("id/", n), Body: fmt.Appendf(nil, "body of %d%s", n, strings.Repeat(".", n%300))}
}

// put appends records n to m-1, one after the other, and returns their
// sequences.
func put(t testing.TB, j *Journal, n, m int) []uint64 {
	t.Helper()
	var all []uint64
	for i := n; i < m; i++ {
		s, err := j.Append(record(i))
		if err != nil {
			t.Fatalf("Append of %d: %v", i, err)
		}
		all = append(all, s...)
	}
	return all
}

// read returns all records from a sequence on.
func read(t testing.TB, j *Journal, from uint64) []Record {
	t.Helper()
	r := j.Reader(from)
	var all []Record
	for {
		records, err := r.Next(100)
		if err != nil {
			t.Fatalf("Next: %v", err)
		}
		if len(records) == 0 {
			return all
		}
		all = append(all, records...)
	}
}

// check says what is wrong with records n to m-1, whose sequences are n+1 on.
func check(t testing.TB, got []Record, n, m int) {
	t.Helper()
	if len(got) != m-n {
		t.Fatalf("%d records are read, want %d", len(got), m-n)
	}
	for i, r := range got {
		want := record(n + i)
		if r.ID != want.ID || !bytes.Equal(r.Body, want.Body) || r.Sequence != uint64(n+i+1) || i > 0 && r.Time.Before(got[i-1].Time) {
			t.Fatalf("record %d is %d %s %q at %v", n+i, r.Sequence, r.ID, r.Body, r.Time)
		}
	}
}

func TestRecordsAreReadAsTheyWereAppended(t *testing.T) {
	o := options(t, filepath.Join(t.TempDir(), "j"))
	o.Bytes = 16 * segmentMin
	j := open(t, o)
	const n = 1500
	put(t, j, 0, n)
	large := Record{ID: "large", Body: bytes.Repeat([]byte("x"), BodyMax)}
	if _, err := j.Append(large); err != nil {
		t.Fatalf("Append of a large one: %v", err)
	}
	for _, from := range []int{0, 1, 777, n - 1} {
		got := read(t, j, uint64(from+1))
		check(t, got[:len(got)-1], from, n)
		if l := got[len(got)-1]; !bytes.Equal(l.Body, large.Body) {
			t.Errorf("the large record has %d bytes", len(l.Body))
		}
	}
	closeIt(t, j)
	if _, err := j.Append(record(1)); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Append to a closed journal: %v", err)
	}
	epoch := j.Epoch()
	j = open(t, o)
	defer closeIt(t, j)
	if j.Epoch() != epoch {
		t.Errorf("epoch %s became %s", epoch, j.Epoch())
	}
	check(t, read(t, j, 1)[:n], 0, n)
	if s := put(t, j, n, n+1); s[0] != n+2 {
		t.Errorf("the next sequence is %d, want %d", s[0], n+2)
	}
	if st := j.Stat(); st.First != 1 || st.Last != n+2 || st.Oldest.IsZero() || st.Bytes < int64(BodyMax) {
		t.Errorf("Stat: %+v", st)
	}
}

func TestManyAppendAtOnceInOneOrder(t *testing.T) {
	o := options(t, t.TempDir())
	var mu sync.Mutex
	var told []uint64
	o.Told = func(records []Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range records {
			told = append(told, r.Sequence)
		}
	}
	j := open(t, o)
	defer closeIt(t, j)
	var all sync.WaitGroup
	const writers, n = 16, 40
	for w := range writers {
		all.Go(func() {
			var last uint64
			for i := range n {
				s, err := j.Append(Record{ID: fmt.Sprint(w, "/", i)}, Record{ID: fmt.Sprint(w, "/", i, "/b")})
				if err != nil || s[0] <= last || s[1] <= s[0] {
					t.Errorf("Append: %v, %v after %d", s, err, last)
				}
				last = s[1]
				mu.Lock()
				if !slices.Contains(told, last) {
					t.Errorf("record %d was not told before Append returned", last)
				}
				mu.Unlock()
				if i%7 == 0 {
					if err := j.Retain(); err != nil {
						t.Errorf("Retain: %v", err)
					}
				}
			}
		})
	}
	all.Wait()
	for i, s := range told {
		if s != uint64(i+1) {
			t.Fatalf("told %d as number %d", s, i+1)
		}
	}
	if len(told) != 2*writers*n {
		t.Errorf("%d records were told, want %d", len(told), 2*writers*n)
	}
}

func TestAnIDIsTakenOnce(t *testing.T) {
	o := options(t, t.TempDir())
	j := open(t, o)
	first := put(t, j, 0, 10)
	if again := put(t, j, 0, 10); !slices.Equal(first, again) {
		t.Errorf("sequences %v became %v", first, again)
	}
	if s, err := j.Append(record(50), record(50), record(3)); err != nil || s[0] != 11 || s[1] != 11 || s[2] != 4 {
		t.Errorf("Append of one twice: %v, %v", s, err)
	}
	closeIt(t, j)
	j = open(t, o)
	defer closeIt(t, j)
	if again := put(t, j, 0, 10); !slices.Equal(first, again) {
		t.Errorf("after Open sequences %v became %v", first, again)
	}
}

func TestWhatIsTooMuchOrTooOldGoes(t *testing.T) {
	now := time.Now()
	o := options(t, t.TempDir())
	o.now = func() time.Time { return now }
	o.Bytes, o.Age = 8*segmentMin, 8*time.Hour
	j := open(t, o)
	defer closeIt(t, j)
	body := bytes.Repeat([]byte("x"), 10_000)
	n := 0
	for range 600 {
		n++
		if _, err := j.Append(Record{ID: fmt.Sprint(n), Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	st := j.Stat()
	if st.Bytes > o.Bytes+2*segmentMin || st.Bytes < o.Bytes/2 || st.Last != 600 {
		t.Errorf("after 6 MB: %+v", st)
	}
	if got := read(t, j, 1); got[0].Sequence != st.First || uint64(len(got)) != st.Last-st.First+1 {
		t.Errorf("read from the beginning: %d from %d, want %+v", len(got), got[0].Sequence, st)
	}
	cut := now.Add(time.Hour)
	for range 12 {
		now = now.Add(time.Hour)
		n++
		if _, err := j.Append(Record{ID: fmt.Sprint(n)}); err != nil {
			t.Fatal(err)
		}
	}
	st = j.Stat()
	if age := now.Sub(st.Oldest); age > 10*time.Hour || age < 7*time.Hour {
		t.Errorf("the oldest is of %v ago", age)
	}
	if s, err := j.Since(now.Add(-90 * time.Minute)); err != nil || s != st.Last-1+0 {
		t.Errorf("Since 90 minutes ago is %d, %v, want %d", s, err, st.Last-1)
	}
	if s, err := j.Since(cut.Add(-time.Minute)); err != nil || s != st.First {
		t.Errorf("Since before everything is %d, %v, want %d", s, err, st.First)
	}
	if s, err := j.Since(now.Add(time.Minute)); err != nil || s != st.Last+1 {
		t.Errorf("Since later is %d, %v, want %d", s, err, st.Last+1)
	}
	now = now.Add(100 * time.Hour)
	if err := errors.Join(j.Retain(), j.Retain()); err != nil {
		t.Fatal(err)
	}
	if st := j.Stat(); st.First != st.Last+1 || !st.Oldest.IsZero() {
		t.Errorf("when all is too old: %+v", st)
	}
	if s, err := j.Append(Record{ID: "again"}); err != nil || s[0] != uint64(n+1) {
		t.Errorf("the next sequence is %v, %v, want %d", s, err, n+1)
	}
}

// A reader that is behind is not harmed by what is dropped meanwhile.
func TestAReaderPassesOverWhatWasDropped(t *testing.T) {
	o := options(t, t.TempDir())
	o.Bytes = 4 * segmentMin
	j := open(t, o)
	defer closeIt(t, j)
	put(t, j, 0, 10)
	r := j.Reader(1)
	if got, err := r.Next(5); err != nil || len(got) != 5 {
		t.Fatalf("Next: %d, %v", len(got), err)
	}
	body := bytes.Repeat([]byte("x"), 10_000)
	for i := range 400 {
		if _, err := j.Append(Record{ID: fmt.Sprint("x", i), Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	var last uint64
	for {
		got, err := r.Next(100)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
		for _, g := range got {
			if g.Sequence <= last {
				t.Fatalf("%d after %d", g.Sequence, last)
			}
			last = g.Sequence
		}
	}
	if last != 410 {
		t.Errorf("the last is %d", last)
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	j := open(t, options(t, t.TempDir()))
	defer closeIt(t, j)
	for _, r := range []Record{{ID: strings.Repeat("i", IDMax+1)}, {Body: make([]byte, BodyMax+1)}} {
		if _, err := j.Append(record(1), r); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Append of %d and %d bytes: %v", len(r.ID), len(r.Body), err)
		}
	}
	if got := read(t, j, 1); len(got) != 0 {
		t.Errorf("%d records were taken", len(got))
	}
}

// Whatever byte of an older segment or of the newest is changed, all other
// records are read, in order, and what is missing shows by the sequences.
func TestDamageLosesWhatItHitsAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	o.segment = 32 << 10 // not much of it is zero
	j := open(t, o)
	const n = 60
	put(t, j, 0, n)
	// Two segments.
	if err := j.exclusive(j.rotate); err != nil {
		t.Fatal(err)
	}
	put(t, j, n, 2*n)
	closeIt(t, j)
	for _, first := range []uint64{1, n + 1} {
		name := filepath.Join(dir, segmentName(first))
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for off := headerSize; off < len(good); off += 97 {
			bad := bytes.Clone(good)
			bad[off] ^= 0x41
			if err := os.WriteFile(name, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			o.Log = slog.New(slog.DiscardHandler)
			j, err := Open(o)
			if err != nil {
				t.Fatalf("segment %d, byte %d: %v", first, off, err)
			}
			got := read(t, j, 1)
			if len(got) != 2*n-1 {
				t.Fatalf("segment %d, byte %d: %d records are left of %d", first, off, len(got), 2*n)
			}
			for _, r := range got {
				if want := record(int(r.Sequence - 1)); want.ID != r.ID || !bytes.Equal(want.Body, r.Body) {
					t.Fatalf("segment %d, byte %d: %d is %s", first, off, r.Sequence, r.ID)
				}
			}
			// The very last record cannot be told from one that was never
			// finished; its sequence is not given out again.
			if s, err := j.Append(Record{ID: "new"}); err != nil || s[0] <= 2*n {
				t.Fatalf("segment %d, byte %d: the next sequence is %d, %v", first, off, s, err)
			}
			closeIt(t, j)
			if err := os.WriteFile(name, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if first == 1 {
				trim(t, filepath.Join(dir, segmentName(n+1)), 2*n)
			}
		}
	}
}

// trim cuts the records past a sequence off a segment.
func trim(t *testing.T, name string, last uint64) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	off := headerSize
	for {
		f, state := decode(b[off:])
		if state != whole || f.Sequence > last {
			break
		}
		off += f.size
	}
	if err := os.Truncate(name, int64(off)); err != nil {
		t.Fatal(err)
	}
}

// What cannot be mended is put aside, and the new stream is another one.
func TestAStreamWhoseEndIsUnknownBeginsAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"no state":            func(t *testing.T, dir string) { remove(t, filepath.Join(dir, stateName)) },
		"a state of nonsense": func(t *testing.T, dir string) { write(t, filepath.Join(dir, stateName), "{") },
		"an empty state":      func(t *testing.T, dir string) { write(t, filepath.Join(dir, stateName), "") },
		"no newest segment":   func(t *testing.T, dir string) { remove(t, filepath.Join(dir, segmentName(11))) },
		"an empty newest":     func(t *testing.T, dir string) { write(t, filepath.Join(dir, segmentName(11)), "") },
		"a newest of nonsense": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, segmentName(11)), strings.Repeat("x", 9999))
		},
		"no segments": func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, segmentName(1)))
			remove(t, filepath.Join(dir, segmentName(11)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := options(t, dir)
			j := open(t, o)
			put(t, j, 0, 10)
			if err := j.exclusive(j.rotate); err != nil {
				t.Fatal(err)
			}
			put(t, j, 10, 20)
			epoch := j.Epoch()
			closeIt(t, j)
			damage(t, dir)
			for range 2 {
				j = open(t, o)
				if j.Epoch() == epoch {
					t.Errorf("the stream is still %s", epoch)
				}
				closeIt(t, j)
			}
			j = open(t, o)
			defer closeIt(t, j)
			put(t, j, 0, 5)
			check(t, read(t, j, 1), 0, 5)
		})
	}
}

// TestSequencesOfALostEndAreNotUsedAgain holds that what was told and is gone is a
// hole, however often the stream is opened before anything is appended.
func TestSequencesOfALostEndAreNotUsedAgain(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	for name, lose := range map[string]func(f *os.File, ends []int64) error{
		"the last record is damaged": func(f *os.File, ends []int64) error {
			_, err := f.WriteAt([]byte("damage"), ends[8]+20)
			return err
		},
		"the last records are cut off": func(f *os.File, ends []int64) error { return f.Truncate(ends[6]) },
		"the last records are zero": func(f *os.File, ends []int64) error {
			_, err := f.WriteAt(make([]byte, ends[9]-ends[6]), ends[6])
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			j := open(t, o)
			var ends []int64
			for i := range 10 {
				put(t, j, i, i+1)
				ends = append(ends, j.segments[0].size)
			}
			closeIt(t, j)
			f, err := os.OpenFile(filepath.Join(dir, segmentName(1)), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(lose(f, ends), f.Close()); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				j = open(t, o)
				closeIt(t, j)
			}
			j = open(t, o)
			defer closeIt(t, j)
			if s := put(t, j, 20, 21); s[0] <= 10 {
				t.Errorf("what is appended has sequence %d", s[0])
			}
			if got := read(t, j, 1); len(got) < 8 || got[len(got)-1].ID != "id/20" {
				t.Errorf("%d records are read", len(got))
			}
		})
	}
}

func TestAnOldSegmentThatIsGoneIsAHole(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, name string){
		"gone":     remove,
		"nonsense": func(t *testing.T, name string) { write(t, name, "nonsense") },
		"empty":    func(t *testing.T, name string) { write(t, name, "") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := options(t, dir)
			j := open(t, o)
			for i := range 3 {
				put(t, j, 10*i, 10*i+10)
				if err := j.exclusive(j.rotate); err != nil {
					t.Fatal(err)
				}
			}
			put(t, j, 30, 40)
			epoch := j.Epoch()
			closeIt(t, j)
			damage(t, filepath.Join(dir, segmentName(11)))
			j = open(t, o)
			defer closeIt(t, j)
			got := read(t, j, 1)
			if len(got) != 30 || got[9].Sequence != 10 || got[10].Sequence != 21 || got[29].Sequence != 40 || j.Epoch() != epoch {
				t.Errorf("%d records are read", len(got))
			}
			if s := put(t, j, 40, 41); s[0] != 41 {
				t.Errorf("the next is %d", s[0])
			}
		})
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzSegment(f *testing.F) {
	f.Add([]byte{}, uint64(0))
	f.Add(appendRecord(nil, record(3), 2), uint64(2))
	f.Add(append([]byte("xx"), appendRecord(nil, Record{Sequence: 9, ID: "i"}, 2)...), uint64(2))
	f.Fuzz(func(t *testing.T, b []byte, past uint64) {
		if r, state := decode(b); state == whole {
			again := appendRecord(nil, r.Record, r.synced)
			if !bytes.Equal(again, b[:r.size]) {
				t.Errorf("%x decodes to what encodes as %x", b[:r.size], again)
			}
		}
		if i := seek(b, past); i >= 0 {
			if r, state := decode(b[i:]); state != whole || r.Sequence <= past {
				t.Errorf("seek found %d at %d", r.Sequence, i)
			}
		}
		if _, err := decodeHeader(b); err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("decodeHeader: %v", err)
		}
	})
}
