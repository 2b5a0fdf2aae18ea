package kv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/gantryd/gantry/services/kv"
)

func options(t testing.TB) kv.Options {
	return kv.Options{Dir: filepath.Join(t.TempDir(), "db"), Owner: "contentd", Schema: 1}
}

func open(t testing.TB, o kv.Options) *kv.DB {
	t.Helper()
	db, err := kv.Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return db
}

func put(t testing.TB, db *kv.DB, key, value string) {
	t.Helper()
	if err := db.Update(t.Context(), func(tx *kv.Tx) error { return tx.Put([]byte(key), []byte(value)) }); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

func get(db *kv.DB, key string) (value string, err error) {
	err = db.View(func(tx *kv.Tx) error {
		b, err := tx.Get([]byte(key))
		value = string(b)
		return err
	})
	return value, err
}

func wantKind(t testing.TB, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got error %v, want kind %v", err, kind)
	}
}

func keys(tx *kv.Tx, prefix, from string) []string {
	var found []string
	for k, v := range tx.Scan([]byte(prefix), []byte(from)) {
		found = append(found, string(k)+"="+string(v))
	}
	return found
}

func TestWhatWasPutIsThereAfterOpen(t *testing.T) {
	o := options(t)
	db, err := kv.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	put(t, db, "a", "1")
	incarnation := db.Incarnation()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, o)
	if got, err := get(db, "a"); got != "1" || err != nil {
		t.Errorf("Get: %q, %v, want 1", got, err)
	}
	if got := db.Incarnation(); got != incarnation || len(got) != 16 {
		t.Errorf("Incarnation: %q, want %q", got, incarnation)
	}
}

func TestScanSeesOwnWritesInOrder(t *testing.T) {
	db := open(t, options(t))
	for _, k := range []string{"a", "p/1", "p/3", "p/5", "q"} {
		put(t, db, k, "old")
	}
	err := db.Update(t.Context(), func(tx *kv.Tx) error {
		scan := tx.Scan([]byte("p/"), nil)
		err := errors.Join(
			tx.Put([]byte("p/2"), []byte("new")), tx.Put([]byte("p/3"), []byte("new")),
			tx.Put([]byte("p/9"), []byte("new")), tx.Delete([]byte("p/5")), tx.Delete([]byte("p/7")))
		if d := cmp.Diff([]string{"p/1=old", "p/2=new", "p/3=new", "p/9=new"}, keys(tx, "p/", "")); d != "" {
			t.Errorf("Scan(p/): -want +got\n%s", d)
		}
		if d := cmp.Diff([]string{"p/3=new", "p/9=new"}, keys(tx, "p/", "p/21")); d != "" {
			t.Errorf("Scan(p/, p/21): -want +got\n%s", d)
		}
		if d := cmp.Diff([]string{"a=old", "p/1=old", "p/2=new", "p/3=new", "p/9=new", "q=old"}, keys(tx, "", "")); d != "" {
			t.Errorf("Scan of everything: -want +got\n%s", d)
		}
		var before []string
		for k := range scan {
			before = append(before, string(k))
		}
		if d := cmp.Diff([]string{"p/1", "p/3", "p/5"}, before); d != "" {
			t.Errorf("a Scan made before the writes: -want +got\n%s", d)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for range 2 { // a scan that is left early closes what it opened
		_ = db.View(func(tx *kv.Tx) error {
			for range tx.Scan(nil, nil) {
				break
			}
			return nil
		})
	}
}

func TestAFailedUpdateWritesNothingAndItsErrorIsUnchanged(t *testing.T) {
	db := open(t, options(t))
	want := errors.New("no")
	err := db.Update(t.Context(), func(tx *kv.Tx) error {
		return errors.Join(tx.Put([]byte("a"), nil), want)
	})
	wantKind(t, err, want)
	if got := db.Update(t.Context(), func(*kv.Tx) error { return want }); got != want {
		t.Errorf("Update: %v, want the same error", got)
	}
	_, err = get(db, "a")
	wantKind(t, err, errdefs.ErrNotFound)
}

func TestWhatCannotBeWrittenIsInvalid(t *testing.T) {
	db := open(t, options(t))
	for name, fn := range map[string]func(tx *kv.Tx) error{
		"empty key":    func(tx *kv.Tx) error { return tx.Put(nil, nil) },
		"long key":     func(tx *kv.Tx) error { return tx.Put(make([]byte, 65_001), nil) },
		"badger's key": func(tx *kv.Tx) error { return tx.Delete([]byte("!badger!x")) },
		"owner's row":  func(tx *kv.Tx) error { return tx.Delete([]byte("\x01owner")) },
		"long value":   func(tx *kv.Tx) error { return tx.Put([]byte("a"), make([]byte, 16<<20)) },
		"many keys":    func(tx *kv.Tx) error { return fill(tx, 4000, 10) },
		"many bytes":   func(tx *kv.Tx) error { return fill(tx, 100, 10_000) },
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, db.Update(t.Context(), fn), errdefs.ErrInvalidArgument) })
	}
	wantKind(t, db.View(func(tx *kv.Tx) error { return tx.Put([]byte("a"), nil) }), errdefs.ErrFailedPrecondition)
	var kept *kv.Tx
	_ = db.View(func(tx *kv.Tx) error { kept = tx; return nil })
	if _, err := kept.Get([]byte("a")); err == nil {
		t.Error("a transaction that is over answers")
	}
}

func fill(tx *kv.Tx, keys, size int) error {
	for i := range keys {
		if err := tx.Put(kv.Key("fill", strconv.Itoa(i)), make([]byte, size)); err != nil {
			return err
		}
	}
	return nil
}

func TestLargeValuesAreKept(t *testing.T) {
	o := options(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 5<<16) // 5 MiB
	db := open(t, o)
	for i := range 4 {
		put(t, db, fmt.Sprint(i), string(want))
	}
	for i := range 4 {
		if got, err := get(db, fmt.Sprint(i)); got != string(want) || err != nil {
			t.Errorf("Get: %d bytes, %v", len(got), err)
		}
	}
}

// A group of updates whose writes are more than one commit takes is split.
func TestConcurrentUpdatesAreSerial(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, size := range []int{1, 40_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { concurrent(t, size) })
	}
}

func concurrent(t *testing.T, size int) {
	db := open(t, options(t))
	const callers = 32
	rounds := 30
	if size > 1 {
		rounds = 5
	}
	no := errors.New("no")
	var all sync.WaitGroup
	var durable sync.Map
	for c := range callers {
		all.Go(func() {
			for r := range rounds {
				var mine int
				after := false
				err := db.Update(t.Context(), func(tx *kv.Tx) error {
					n := 0
					if err := tx.GetJSON([]byte("n"), &n); err != nil && !errdefs.IsNotFound(err) {
						return err
					}
					if got := len(keys(tx, "row", "")); size == 1 && got != n {
						return fmt.Errorf("%d rows and a count of %d", got, n)
					}
					mine = n
					err := errors.Join(tx.PutJSON([]byte("n"), n+1), tx.Put(kv.Key("row", fmt.Sprint(c, ".", r)), make([]byte, size)))
					tx.After(func() { after = true })
					if (c+r)%5 == 0 {
						return no
					}
					return err
				})
				if (c+r)%5 == 0 {
					if err != no || after {
						t.Errorf("Update: %v, %t, want %v", err, after, no)
					}
					continue
				}
				if err != nil || !after {
					t.Errorf("Update: %v, %t", err, after)
					return
				}
				if _, twice := durable.LoadOrStore(mine, c); twice {
					t.Errorf("two updates saw a count of %d", mine)
				}
				if _, err := get(db, string(kv.Key("row", fmt.Sprint(c, ".", r)))); err != nil {
					t.Errorf("Get after Update: %v", err)
				}
			}
		})
	}
	all.Wait()
	if got, _ := get(db, "n"); got != fmt.Sprint(callers*rounds*4/5) {
		t.Errorf("count is %s, want %d", got, callers*rounds*4/5)
	}
}

func TestAnEndedContextLeavesTheQueue(t *testing.T) {
	db := open(t, options(t))
	inside, leave := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		ctx, cancel := context.WithCancel(t.Context())
		if err := db.Update(ctx, func(tx *kv.Tx) error {
			close(inside)
			<-leave
			cancel() // too late to matter
			return tx.Put([]byte("first"), nil)
		}); err != nil {
			t.Errorf("Update that was running: %v", err)
		}
	})
	<-inside
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error)
	ran := false
	go func() {
		second <- db.Update(ctx, func(*kv.Tx) error { ran = true; return nil })
	}()
	cancel()
	if err := <-second; err != context.Canceled || ran {
		t.Errorf("Update that waited: %v, ran %t", err, ran)
	}
	close(leave)
	first.Wait()
	if _, err := get(db, "first"); err != nil {
		t.Error(err)
	}
}

func TestCloseWaitsAndThenAllIsUnavailable(t *testing.T) {
	db, err := kv.Open(options(t))
	if err != nil {
		t.Fatal(err)
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		if err := db.View(func(tx *kv.Tx) error {
			close(inside)
			<-leave
			_, err := tx.Get([]byte("a"))
			return err
		}); !errdefs.IsNotFound(err) {
			t.Errorf("View: %v", err)
		}
	})
	<-inside
	closed := make(chan error, 1)
	all.Go(func() { closed <- db.Close() })
	for db.View(func(*kv.Tx) error { return nil }) == nil {
	}
	select {
	case <-closed:
		t.Error("Close did not wait for the view")
	default:
	}
	close(leave)
	all.Wait()
	wantKind(t, db.Update(t.Context(), func(*kv.Tx) error { return nil }), errdefs.ErrUnavailable)
	wantKind(t, db.Backup(t.Context(), &bytes.Buffer{}), errdefs.ErrUnavailable)
	if err := db.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestOpenRefusesWhatIsNotOurs(t *testing.T) {
	o := options(t)
	db := open(t, o)
	_, err := kv.Open(o)
	wantKind(t, err, errdefs.ErrFailedPrecondition)
	if !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want it to say in use", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	foreign := o
	foreign.Owner = "taskd"
	_, err = kv.Open(foreign)
	wantKind(t, err, errdefs.ErrFailedPrecondition)
	if !strings.Contains(err.Error(), "contentd") || !strings.Contains(err.Error(), "taskd") {
		t.Errorf("got %v, want both names in it", err)
	}

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = kv.Open(kv.Options{Dir: dir, Owner: "contentd", Schema: 1})
	wantKind(t, err, errdefs.ErrFailedPrecondition)
	if names, _ := filepath.Glob(dir + "/*"); len(names) != 1 {
		t.Errorf("a refused directory was changed: %v", names)
	}
	_, err = kv.Open(kv.Options{Dir: t.TempDir()})
	wantKind(t, err, errdefs.ErrInvalidArgument)
}

func TestOpenTightensTheDirectory(t *testing.T) {
	o := options(t)
	if err := os.MkdirAll(o.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	open(t, o)
	if st, err := os.Stat(o.Dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode is %v, %v", st.Mode(), err)
	}
}

func TestSchemasAreMigratedInSteps(t *testing.T) {
	o := options(t)
	db := open(t, o)
	put(t, db, "a", "1")
	db.Close()

	o.Schema = 3
	_, err := kv.Open(o)
	wantKind(t, err, errdefs.ErrFailedPrecondition)

	var steps []int
	stop := errors.New("stop")
	o.Migrate = func(tx *kv.Tx, from int) error {
		steps = append(steps, from)
		if err := tx.Put([]byte("a"), []byte(strconv.Itoa(from+1))); err != nil {
			return err
		}
		if from == 2 && len(steps) == 2 {
			return stop
		}
		return nil
	}
	_, err = kv.Open(o)
	wantKind(t, err, stop)
	db = open(t, o)
	if got, _ := get(db, "a"); got != "3" || !slices.Equal(steps, []int{1, 2, 2}) {
		t.Errorf("after steps %v a is %s", steps, got)
	}
	db.Close()

	o.Schema, o.Migrate = 2, nil
	_, err = kv.Open(o)
	wantKind(t, err, errdefs.ErrFailedPrecondition)
}

func TestEmptyLogFilesAreSwept(t *testing.T) {
	o := options(t)
	db := open(t, o)
	put(t, db, "a", "1")
	db.Close()
	for _, name := range []string{"00077.mem", "000077.vlog"} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db = open(t, o)
	if got, err := get(db, "a"); got != "1" || err != nil {
		t.Errorf("Get: %q, %v", got, err)
	}
}

func restoreTo(t *testing.T, o kv.Options, r io.Reader) error {
	_, err := kv.Restore(t.Context(), o, r)
	return err
}

func TestABackupIsRestoredAsAnotherIncarnation(t *testing.T) {
	db := open(t, options(t))
	for i := range 2000 {
		put(t, db, fmt.Sprint("k", i), fmt.Sprint(i))
	}
	var b bytes.Buffer
	if err := db.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	if err := restoreTo(t, o, bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	wantKind(t, restoreTo(t, o, bytes.NewReader(b.Bytes())), errdefs.ErrFailedPrecondition)
	foreign := options(t)
	foreign.Owner = "taskd"
	wantKind(t, restoreTo(t, foreign, bytes.NewReader(b.Bytes())), errdefs.ErrFailedPrecondition)
	again := open(t, o)
	var want, got []string
	_ = db.View(func(tx *kv.Tx) error { want = keys(tx, "", ""); return nil })
	_ = again.View(func(tx *kv.Tx) error { got = keys(tx, "", ""); return nil })
	if d := cmp.Diff(want, got); d != "" || len(got) != 2000 {
		t.Errorf("restored: -want +got\n%s", d)
	}
	if db.Incarnation() == again.Incarnation() {
		t.Error("the incarnation is the same")
	}
}

func TestKeysAreTakenApartAsTheyWereMade(t *testing.T) {
	if got := string(kv.Key("a", "")); got != "a\x00" {
		t.Errorf("Key(a, ''): %q", got)
	}
	for _, parts := range [][]string{{""}, {"a"}, {"a", ""}, {"", "a"}, {"a\x00b", "\x01\x02"}, {"\x00\x01", "x\x01"}} {
		if got := kv.Parts(kv.Key(parts...)); !slices.Equal(got, parts) {
			t.Errorf("Parts(Key(%q)): %q", parts, got)
		}
	}
	if bytes.Equal(kv.Key("ns", "a\x00b"), kv.Key("ns", "a", "b")) {
		t.Error("one part passes for two")
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("a", "b", "c", "d")
	f.Add("\x00", "\x01", "\x01\x01", "")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		x, y := kv.Key(a, b), kv.Key(c, d)
		if got := kv.Parts(x); !slices.Equal(got, []string{a, b}) {
			t.Errorf("Parts(Key(%q, %q)): %q", a, b, got)
		}
		if got, want := bytes.Compare(x, y), slices.Compare([]string{a, b}, []string{c, d}); got != want {
			t.Errorf("Key(%q, %q) and Key(%q, %q) compare %d, want %d", a, b, c, d, got, want)
		}
	})
}

func TestReplacePutsABackupInTheDatabasesPlace(t *testing.T) {
	o := options(t)
	db := open(t, o)
	put(t, db, "a", "1")
	var b bytes.Buffer
	if err := db.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	before := db.Incarnation()
	put(t, db, "a", "2")
	put(t, db, "b", "2")

	// A view that goes on for ever is in the way, and everybody goes on.
	ctx, cancel := context.WithCancel(t.Context())
	_ = db.View(func(*kv.Tx) error {
		failed := make(chan error)
		go func() {
			_, err := db.Replace(ctx, bytes.NewReader(b.Bytes()))
			failed <- err
		}()
		cancel()
		if err := <-failed; err == nil {
			t.Error("Replace while somebody reads: no error")
		}
		return nil
	})
	bad := bytes.Clone(b.Bytes())
	bad[len(bad)/2] ^= 1
	_, err := db.Replace(t.Context(), bytes.NewReader(bad))
	wantKind(t, err, errdefs.ErrDataLoss)
	if v, err := get(db, "a"); v != "2" || err != nil {
		t.Fatalf("Get: %q, %v", v, err)
	}

	if _, err := db.Replace(t.Context(), bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if v, err := get(db, "a"); v != "1" || err != nil {
		t.Errorf("Get: %q, %v", v, err)
	}
	_, err = get(db, "b")
	wantKind(t, err, errdefs.ErrNotFound)
	if db.Incarnation() == before {
		t.Error("the incarnation is the same")
	}
	put(t, db, "c", "3")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err := get(open(t, o), "c"); v != "3" || err != nil {
		t.Errorf("Get: %q, %v", v, err)
	}
	if _, err := os.Stat(o.Dir + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what it was made in is still there: %v", err)
	}
}
