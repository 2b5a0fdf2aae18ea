package kv_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/kv"
)

const (
	childDir = "KV_TEST_CHILD_DIR" // the database that the child process writes to
	writers  = 6
	rows     = 3 // keys per transaction
)

func crashKey(writer, row int) []byte { return kv.Key("w", fmt.Sprint(writer), fmt.Sprint(row)) }

// TestKillLosesNothingAcknowledged kills a process in the middle of concurrent
// writes, again and again, and reads the database each time: what was
// acknowledged is there, and of each transaction all or nothing.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	if os.Getenv(childDir) != "" {
		t.Skip("is the child")
	}
	o := options(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var acked [writers]int
	for round := range 12 {
		killWriter(t, o.Dir, time.Duration(20+random.IntN(200))*time.Millisecond, &acked)
		if round%3 == 0 {
			// As if it died between making a log and sizing it.
			if err := os.WriteFile(fmt.Sprintf("%s/%05d.mem", o.Dir, 90000+round), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		checkAcked(t, o, &acked)
	}
	total := 0
	for _, n := range acked {
		total += n
	}
	t.Logf("%d transactions acknowledged", total)
}

// killWriter runs the child until after has passed since its first answer, and
// notes what it acknowledged.
func killWriter(t *testing.T, dir string, after time.Duration, acked *[writers]int) {
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
	kill := time.AfterFunc(5*time.Second, func() { _ = child.Process.Kill() })
	first := true
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var writer, n int
		if _, err := fmt.Sscanf(lines.Text(), "%d %d", &writer, &n); err != nil {
			continue // of the test framework, or cut short
		}
		if first {
			first = false
			kill.Reset(after)
		}
		acked[writer] = max(acked[writer], n)
	}
	_ = child.Wait()
	if first {
		t.Fatal("the child wrote nothing")
	}
}

func checkAcked(t *testing.T, o kv.Options, acked *[writers]int) {
	t.Helper()
	db, err := kv.Open(o)
	if err != nil {
		t.Fatalf("Open after a kill: %v", err)
	}
	defer db.Close()
	for w := range writers {
		var got [rows]int
		if err := db.View(func(tx *kv.Tx) error {
			for r := range rows {
				if err := tx.GetJSON(crashKey(w, r), &got[r]); err != nil && !errdefs.IsNotFound(err) {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if got[0] != got[1] || got[0] != got[2] {
			t.Fatalf("writer %d: half of a transaction: %v", w, got)
		}
		if got[0] < acked[w] {
			t.Fatalf("writer %d: %d was acknowledged and %d is stored", w, acked[w], got[0])
		}
	}
}

// TestWriteUntilKilled is the child of TestKillLosesNothingAcknowledged.
func TestWriteUntilKilled(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("is run by TestKillLosesNothingAcknowledged")
	}
	db, err := kv.Open(kv.Options{Dir: dir, Owner: "contentd", Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	for w := range writers {
		go func() { failed <- writeForEver(t, db, w) }()
	}
	t.Fatal(<-failed)
}

func writeForEver(t *testing.T, db *kv.DB, w int) error {
	for {
		n := 0
		if err := db.Update(t.Context(), func(tx *kv.Tx) error {
			for r := range rows {
				n = 0
				if err := tx.GetJSON(crashKey(w, r), &n); err != nil && !errdefs.IsNotFound(err) {
					return err
				}
				n++
				if err := tx.PutJSON(crashKey(w, r), n); err != nil {
					return err
				}
			}
			// Enough that logs fill and tables are made.
			return errors.Join(tx.Put(kv.Key("fill", fmt.Sprint(w, n%500)), make([]byte, 4000)),
				tx.Delete(kv.Key("fill", fmt.Sprint(w, (n+250)%500))))
		}); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(os.Stdout, "%d %d\n", w, n); err != nil {
			return err
		}
	}
}
