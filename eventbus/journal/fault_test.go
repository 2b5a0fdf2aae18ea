package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A disk that is full does not keep what is too old: that it goes may be what
// makes space.
func TestWhatIsTooOldGoesFromAFullDisk(t *testing.T) {
	d, now := newMemDisk(), time.Now()
	o := memOptions(d)
	o.now = func() time.Time { return now }
	j := open(t, o)
	for i := range 30 {
		if _, err := j.Append(Record{ID: fmt.Sprint(i), Body: make([]byte, 2_000)}); err != nil {
			t.Fatal(err)
		}
	}
	first, last := j.Bounds()
	now = now.Add(2 * o.Age)
	d.fault, d.full = unix.ENOSPC, true
	if err := j.Retain(); err == nil {
		t.Error("Retain makes a segment on a full disk")
	}
	if got, _ := j.Bounds(); got == first {
		t.Errorf("what is kept begins at %d still, up to %d", got, last)
	}
	d.full = false
	if _, err := j.Append(Record{ID: "new"}); err != nil {
		t.Errorf("Append when there is space: %v", err)
	}
}

// A clock that is set back hides nothing from who asks by time.
func TestSinceWhenTheClockIsSetBack(t *testing.T) {
	now := time.Now()
	o := memOptions(newMemDisk())
	o.now = func() time.Time { return now }
	j := open(t, o)
	var middle time.Time
	for i := range 15 {
		if i == 5 {
			middle = now
		}
		if i == 6 {
			now = now.Add(-time.Hour)
		}
		if _, err := j.Append(Record{ID: fmt.Sprint(i), Body: make([]byte, 2_000)}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
	}
	if got, err := j.Since(middle); err != nil || got > 6 {
		t.Errorf("since the sixth record begins at %d, %v", got, err)
	}
}

// What was not written takes the place of no id that was.
func TestFailedAppendsForgetNoID(t *testing.T) {
	d := newMemDisk()
	j := open(t, memOptions(d))
	want, err := j.Append(Record{ID: "acknowledged"})
	if err != nil {
		t.Fatal(err)
	}
	batch := make([]Record, 4096)
	for i := range batch {
		batch[i].ID = fmt.Sprint(i)
	}
	for range idsMax/len(batch) + 1 {
		d.badWrite = unix.EIO
		if _, err := j.Append(batch...); err == nil {
			t.Fatal("the disk takes it")
		}
		d.badWrite = nil
	}
	if got, err := j.Append(Record{ID: "acknowledged"}); err != nil || got[0] != want[0] {
		t.Errorf("appended again it is %d, %v, and was %d", got, err, want[0])
	}
}

// Sectors that cannot be read are damage like any other: the journal opens, and
// the rest is read.
func TestSectorsThatCannotBeRead(t *testing.T) {
	d := newMemDisk()
	j := open(t, memOptions(d))
	for i := range 45 {
		if _, err := j.Append(Record{ID: fmt.Sprint(i), Body: make([]byte, 900)}); err != nil {
			t.Fatal(err)
		}
	}
	closeIt(t, j)
	names, _ := d.List()
	var segments []string
	for _, name := range names {
		if _, ok := parseSegmentName(name); ok {
			segments = append(segments, name)
		}
	}
	if len(segments) < 3 {
		t.Fatalf("%d segments", len(segments))
	}
	for _, bad := range []struct {
		name string
		off  int64
		lost int
	}{
		{segments[1], 4096, 6},
		{segments[len(segments)-1], 4096, 6},
		{segments[1], 0, 10},
	} {
		d.badName, d.badOff = bad.name, bad.off
		j, err := Open(memOptions(d.crash(rand.New(rand.NewPCG(1, 1)))))
		if err != nil {
			t.Errorf("Open with a bad sector of %s at %d: %v", bad.name, bad.off, err)
			continue
		}
		if got := len(read(t, j, 1)); got < 45-bad.lost || got >= 45 {
			t.Errorf("%d records of 45 are read past a bad sector of %s at %d", got, bad.name, bad.off)
		}
	}
}

// A size that cannot be is not taken for how much there is to read.
func TestAFileOfATerabyte(t *testing.T) {
	o := options(t, t.TempDir())
	j := open(t, o)
	put(t, j, 0, 10)
	closeIt(t, j)
	if err := os.Truncate(filepath.Join(o.Dir, segmentName(1)), 1<<40); err != nil {
		t.Skip(err) // what some file systems have no room for
	}
	j = open(t, o)
	defer closeIt(t, j)
	check(t, read(t, j, 1), 0, 10)
	put(t, j, 10, 12)
}
