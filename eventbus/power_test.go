package eventbus_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/outbox"
)

// newDisk makes a file system in a file.
func newDisk(t *testing.T, size int64) (image string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a disk of its own")
	}
	image = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v: %s", err, out)
	}
	return image
}

// mountDisk mounts an image until the test's end, or until unmount is called.
func mountDisk(t *testing.T, image string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
	// The journal is written by what is synced, and not by the clock.
	if out, err := exec.Command("mount", "-o", "loop,commit=300", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs mount: %v: %s", err, out)
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// A teller makes changes, each with its event, and the bus beside it is on the
// same disk.
type teller struct {
	db   *kv.DB
	box  *outbox.Box
	bus  running
	stop func()
}

func tellerOn(t *testing.T, disk string) teller {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	db, err := kv.Open(kv.Options{Dir: filepath.Join(disk, "db"), Owner: "taskd", Schema: 1, FreeMin: 8 << 20, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	box, err := outbox.Open(db, "taskd", log)
	if err != nil {
		t.Fatal(err)
	}
	cfg := eventbus.Default()
	cfg.Root = filepath.Join(disk, "eventbus")
	bus := open(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	published := make(chan error, 1)
	go func() { published <- box.Publish(ctx, bus) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-published; err != nil {
			t.Errorf("Publish: %v", err)
		}
		bus.stop()
		if err := db.Close(); err != nil {
			t.Errorf("close the database: %v", err)
		}
	}
	t.Cleanup(stop)
	return teller{db: db, box: box, bus: bus, stop: stop}
}

// tell makes a change; its event has the change's number.
func (s teller) tell(t *testing.T, ns string, n int) {
	t.Helper()
	if err := s.db.Update(t.Context(), func(tx *kv.Tx) error {
		if err := tx.PutJSON(kv.Key("change"), n); err != nil {
			return err
		}
		return s.box.Add(t.Context(), tx, event.New(ns, at, event.ContainerDelete{ID: fmt.Sprint(n)}))
	}); err != nil {
		t.Fatal(err)
	}
}

// TestPowerLossLosesNoEvent cuts the power of the disk that a daemon's database
// and the stream are on: what is on the disk at that moment, and not what is on
// its way there, is what another machine finds. It finds every change that was
// acknowledged, and tells the event of each, once and in order.
func TestPowerLossLosesNoEvent(t *testing.T) {
	image := newDisk(t, 192<<20)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	disk, _ := mountDisk(t, image)
	s := tellerOn(t, disk)

	const cuts = 5
	images, acked := make([]string, cuts), make([]int, cuts)
	n := 0
	for i := range cuts {
		for range 1 + random.IntN(60) {
			n++
			s.tell(t, "one", n)
		}
		images[i], acked[i] = filepath.Join(t.TempDir(), "copy"), n
		if out, err := exec.Command("cp", "--sparse=always", image, images[i]).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	incarnation := s.db.Incarnation()
	s.stop()
	for i := range cuts {
		afterPowerLoss(t, images[i], acked[i], incarnation)
		if err := os.Remove(images[i]); err != nil {
			t.Error(err)
		}
	}
}

func afterPowerLoss(t *testing.T, image string, acked int, incarnation string) {
	t.Helper()
	disk, unmount := mountDisk(t, image)
	defer unmount()
	s := tellerOn(t, disk)
	defer s.stop()
	changes := 0
	if err := s.db.View(func(tx *kv.Tx) error { return tx.GetJSON(kv.Key("change"), &changes) }); err != nil {
		t.Fatal(err)
	}
	if changes < acked {
		t.Errorf("%d changes were acknowledged, %d are there", acked, changes)
	}
	s.tell(t, "end", 0)
	told := 0
	for _, e := range all(t, s.bus) {
		if e.Namespace != "one" {
			continue
		}
		told++
		if want := fmt.Sprintf("taskd/%s/%d", incarnation, told); e.ID != want || e.Subject != fmt.Sprint(told) {
			t.Errorf("event %d is %s of %s, want %s", told, e.ID, e.Subject, want)
		}
	}
	if told != changes {
		t.Errorf("%d events are told of %d changes", told, changes)
	}
	t.Logf("%d changes were acknowledged, %d are there, %d are told", acked, changes, told)
}
