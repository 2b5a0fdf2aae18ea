package contentd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
)

// A meter counts what waits for the disk: syncs of files, of directories, and
// transactions, of which those at the same time share one sync.
type meter struct {
	osDisk
	files, dirs, txs atomic.Int64
}

func (m *meter) Create(name string) (file, error) {
	f, err := m.osDisk.Create(name)
	return metered{f, m}, err
}

func (m *meter) SyncDir(dir string) error {
	m.dirs.Add(1)
	return m.osDisk.SyncDir(dir)
}

type metered struct {
	file
	m *meter
}

func (f metered) Sync() error {
	f.m.files.Add(1)
	return f.file.Sync()
}

type meteredDB struct {
	database
	m *meter
}

func (db meteredDB) Update(ctx context.Context, fn func(tx *kv.Tx) error) error {
	db.m.txs.Add(1)
	return db.database.Update(ctx, fn)
}

func (db meteredDB) Release(ctx context.Context, fn func(tx *kv.Tx) error) error {
	db.m.txs.Add(1)
	return db.database.Release(ctx, fn)
}

// TestSmallBlobCostsThreeSyncs: the bytes, the directory that has the name, and
// the record. The numbers are in doc.go.
func TestSmallBlobCostsThreeSyncs(t *testing.T) {
	for _, writers := range []int{1, 8} {
		m := &meter{}
		s, err := open(testConfig(t), Needs{}, m, func(db *kv.DB) database { return meteredDB{db, m} })
		must(t, err)
		m.dirs.Store(0)
		const blobs = 20
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				for j := range blobs {
					if err := benchOne(t.Context(), s.In(one), fmt.Appendf(make([]byte, 4096), "%d %d", i, j)); err != nil {
						t.Errorf("blob: %v", err)
					}
				}
			})
		}
		wg.Wait()
		closeStore(t, s)
		all := int64(writers * blobs)
		files, dirs, txs := m.files.Load(), m.dirs.Load(), m.txs.Load()
		t.Logf("%d writers, %d blobs: %d syncs of files, %d of directories, %d transactions", writers, all, files, dirs, txs)
		if files != all || txs != all || dirs > all || writers == 1 && dirs != all {
			t.Errorf("want %d, at most %d, %d", all, all, all)
		}
	}
}

// TestIngestThatIsLeftIsRecordedOnce: what is closed can be resumed, and so can
// what is large, without an end of its writer.
func TestIngestThatIsLeftIsRecordedOnce(t *testing.T) {
	for size, want := range map[int]int64{0: 1, 100: 1, 1 << 20: 1, 1<<20 + 1: 2, 5 << 20: 2} {
		m := &meter{}
		s, err := open(testConfig(t), Needs{}, m, func(db *kv.DB) database { return meteredDB{db, m} })
		must(t, err)
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: "r"})
		must(t, err)
		for range 5 {
			_, err = w.Write(make([]byte, size/5))
			must(t, err)
		}
		_, err = w.Write(make([]byte, size%5))
		must(t, err)
		must(t, w.Close())
		if got := m.txs.Load(); got != want {
			t.Errorf("%d bytes: %d transactions, want %d", size, got, want)
		}
		closeStore(t, s)
		s, err = Open(s.cfg, Needs{})
		must(t, err)
		if st, err := s.In(one).Status(t.Context(), "r"); err != nil || st.Offset != int64(size) {
			t.Errorf("%d bytes: Status after a restart: %+v, %v", size, st, err)
		}
		closeStore(t, s)
	}
}

// TestWriterThatIsKilledLeavesALargeIngest: a process that ends leaves what is
// more than a MiB to be resumed, and of what is less nothing.
func TestWriterThatIsKilledLeavesALargeIngest(t *testing.T) {
	cfg := testConfig(t)
	s, err := Open(cfg, Needs{})
	must(t, err)
	for ref, size := range map[string]int{"small": 1 << 20, "large": 1<<20 + 1} {
		w, err := s.In(one).Writer(t.Context(), content.WriterOptions{Ref: ref})
		must(t, err)
		_, err = w.Write(make([]byte, size))
		must(t, err)
		defer w.(*writer).closeFile()
	}
	must(t, s.kv.Close()) // and nothing else
	s = openStore(t, cfg, nil)
	all, err := s.In(one).ListStatuses(t.Context())
	if err != nil || len(all) != 1 || all[0].Ref != "large" || all[0].Offset != 1<<20+1 {
		t.Errorf("ListStatuses: %+v, %v", all, err)
	}
	if names, err := filepath.Glob(filepath.Join(s.ingests(), "*")); err != nil || len(names) != 1 {
		t.Errorf("ingest/ has %v, %v", names, err)
	}
}

// A gate is a disk whose directories are synced when the test says so.
type gate struct {
	osDisk
	err   error
	syncs int
	open  chan struct{}
}

func (g *gate) SyncDir(string) error {
	g.syncs++
	<-g.open
	return g.err
}

func TestDirectoryIsSyncedOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		n := newNames(g, "dir")
		results := make(chan error, 100)
		ask := func(count int) {
			for range count {
				go func() { results <- n.sync() }()
			}
			synctest.Wait()
		}
		want := func(count, syncs int, kind error) {
			t.Helper()
			synctest.Wait()
			if len(results) != count || g.syncs != syncs {
				t.Fatalf("%d are done after %d syncs, want %d after %d", len(results), g.syncs, count, syncs)
			}
			for range count {
				if err := <-results; !errors.Is(err, kind) {
					t.Errorf("sync: %v, want %v", err, kind)
				}
			}
		}
		ask(1)
		ask(7) // while the first is under way, which may not be of their names
		want(0, 1, nil)
		g.open <- struct{}{}
		want(1, 2, nil)
		ask(3)
		failed := errors.New("failed")
		g.err = failed
		g.open <- struct{}{}
		want(7, 3, failed)
		g.err = nil
		g.open <- struct{}{}
		want(3, 3, nil)
		ask(1)
		g.open <- struct{}{}
		want(1, 4, nil)
	})
}
