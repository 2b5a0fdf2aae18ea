package imaged

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/image"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
	"github.com/gantryd/gantry/services/namespace"
)

const (
	childDir = "IMAGED_TEST_CHILD_DIR" // what the child process writes to
	writers  = 4
)

// A progress is how many steps a writer has done.
type progress [writers]int

// TestKillLosesNothingAcknowledged kills a process while it writes, again and
// again, and looks at the records each time. Step n of a writer makes an image
// and a lease, puts the image under it, and takes away those of step n-1.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	if os.Getenv(childDir) != "" {
		t.Skip("is the child")
	}
	dir, seed := t.TempDir(), uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var acked progress
	for range 6 {
		killChild(t, dir, time.Duration(20+random.IntN(150))*time.Millisecond, &acked)
		checkAcked(t, dir, acked)
	}
	t.Logf("%v steps were acknowledged", acked)
}

// killChild runs the child until after has passed since its first answer, and
// notes what it acknowledged.
func killChild(t *testing.T, dir string, after time.Duration, acked *progress) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestWriteUntilKilled$")
	child.Env = append(os.Environ(), childDir+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(10*time.Second, func() { _ = child.Process.Kill() })
	first := true
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var w, n int
		if _, err := fmt.Sscanf(lines.Text(), "ack %d %d", &w, &n); err != nil {
			continue // of the test framework, or cut short
		}
		if first {
			first = false
			kill.Reset(after)
		}
		acked[w] = max(acked[w], n)
	}
	_ = child.Wait()
	if first {
		t.Fatal("the child wrote nothing")
	}
}

func checkAcked(t *testing.T, dir string, acked progress) {
	t.Helper()
	s, err := Open(Config{Root: dir}, childNeeds(t))
	if err != nil {
		t.Fatalf("Open after a kill: %v", err)
	}
	defer s.Close()
	told := toldOf(t, s)
	for w, n := range acked {
		at, err := lastStep(t, s, w)
		if err != nil {
			t.Fatal(err)
		}
		if at < n {
			t.Errorf("writer %d: step %d was acknowledged and %d is stored", w, n, at)
		}
		if !told[fmt.Sprintf("/images/create %s", name(w, at))] {
			t.Errorf("writer %d: image %d is stored and its event is not", w, at)
		}
	}
}

// lastStep returns the last step that a writer finished. What it was doing may
// be half done.
func lastStep(t *testing.T, s *Store, w int) (int, error) {
	images, err := s.Images().In(scope).List(t.Context(), fmt.Sprintf("labels.writer==%d", w))
	if err != nil {
		return 0, err
	}
	var steps []int
	for _, i := range images {
		var n int
		if _, err := fmt.Sscanf(i.Labels["step"], "%d", &n); err != nil {
			return 0, fmt.Errorf("image %q: %w", i.Name, err)
		}
		steps = append(steps, n)
	}
	slices.Sort(steps)
	switch {
	case len(steps) == 0:
		return 0, nil
	case len(steps) > 2 || len(steps) == 2 && steps[1] != steps[0]+1:
		return 0, fmt.Errorf("writer %d: images of steps %v", w, steps)
	}
	at := steps[0]
	_, err = s.Leases().In(scope).ListResources(t.Context(), name(w, at))
	if len(steps) == 2 && errdefs.IsNotFound(err) {
		return at, nil // the lease goes first
	}
	return at, err
}

func toldOf(t *testing.T, s *Store) map[string]bool {
	t.Helper()
	told := map[string]bool{}
	if err := s.db.View(func(tx *kv.Tx) error {
		for key := range tx.Scan(kv.Key("outbox", ""), nil) {
			var e struct{ Topic, Subject string }
			if err := tx.GetJSON(key, &e); err != nil {
				return err
			}
			told[e.Topic+" "+e.Subject] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return told
}

func name(w, n int) string { return fmt.Sprintf("w%d-%d", w, n) }

func childNeeds(t *testing.T) Needs {
	_, _, needs := owners2()
	needs.Log, needs.Events = slogTo(t), nowhere{}
	return needs
}

// TestWriteUntilKilled is the child of TestKillLosesNothingAcknowledged.
func TestWriteUntilKilled(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("is run by TestKillLosesNothingAcknowledged")
	}
	s, err := Open(Config{Root: dir}, childNeeds(t))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() { failed <- s.Forget(t.Context()) }()
	for w := range writers {
		go func() { failed <- writeForEver(t, s, w) }()
	}
	t.Fatal(<-failed)
}

func writeForEver(t *testing.T, s *Store, w int) error {
	ctx := t.Context()
	at, err := lastStep(t, s, w)
	if err != nil {
		return err
	}
	for n := at + 1; ; n++ {
		in := namespace.Scope{Name: scope.Name, Lease: name(w, n)}
		if _, err := s.Leases().In(scope).Create(ctx, in.Lease, nil); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		i := someImage(name(w, n))
		i.Labels = map[string]string{"writer": fmt.Sprint(w), "step": fmt.Sprint(n), lease.LabelExpire: "2999-01-01T00:00:00Z"}
		if _, err := s.Images().In(in).Create(ctx, i, image.Options{}); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		if n > 1 {
			err := s.Leases().In(scope).Delete(ctx, name(w, n-1), false)
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			err = s.Images().In(scope).Delete(ctx, name(w, n-1), image.DeleteOptions{})
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		fmt.Printf("ack %d %d\n", w, n)
	}
}
