package content_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
)

var wantedBytes = content.WriterOptions{Ref: "r", Total: 100 << 20, Expected: digest.FromString("wanted")}

// A hall is where writers of one digest meet.
type hall struct {
	t       *testing.T
	fetches content.Fetches
	there   bool // the blob is
	lends   func(namespace string) bool
	going   chan *content.Fetch
	ended   chan string
}

func newHall(t *testing.T) *hall {
	return &hall{t: t, lends: func(string) bool { return true }, going: make(chan *content.Fetch, 100), ended: make(chan string, 100)}
}

// start is a writer that says how Start ended: it "fetches", "has" the blob or
// "fails".
func (h *hall) start(ctx context.Context, namespace string, o content.WriterOptions) (*content.Fetch, string) {
	f, err := h.fetches.Start(ctx, namespace, o, h.lends, func() (bool, error) { return h.there, nil })
	switch {
	case err != nil && f == nil:
		return nil, "fails"
	case err == nil && f == nil:
		return nil, "has"
	}
	return f, "fetches"
}

// first wants a writer to fetch at once.
func (h *hall) first(namespace string) *content.Fetch {
	h.t.Helper()
	began := time.Now()
	f, how := h.start(h.t.Context(), namespace, wantedBytes)
	if how != "fetches" || time.Since(began) > 0 {
		h.t.Fatalf("the first writer %s after %v", how, time.Since(began))
	}
	return f
}

// wait starts a writer that is to wait, and tells of its fetch, if it has one.
func (h *hall) wait(namespace string) {
	go func() {
		began := time.Now()
		f, how := h.start(h.t.Context(), namespace, wantedBytes)
		if f != nil {
			h.going <- f
		}
		h.ended <- fmt.Sprintf("%s after %v", how, time.Since(began))
	}()
	synctest.Wait()
}

// want is how the next writer that waited ended.
func (h *hall) want(want string) {
	h.t.Helper()
	if got := <-h.ended; got != want {
		h.t.Errorf("a writer that waited %s, want %s", got, want)
	}
}

// pass lets time pass.
func pass(d time.Duration) { <-time.After(d) }

func TestFetchesWaitForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		f := h.first("a")
		for range 5 {
			h.wait("a")
		}
		for i := range 4 {
			pass(time.Second)
			f.At(int64(i+1) << 20)
		}
		f.Ending()
		pass(20 * time.Second) // the disk is slow
		synctest.Wait()
		h.there = true
		f.Landed()
		f.End()
		for range 5 {
			h.want("has after 24s")
		}
		if _, how := h.start(t.Context(), "a", wantedBytes); how != "has" {
			t.Errorf("one that is late %s", how)
		}
	})
}

func TestFetchThatEndsIsReplacedByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		f := h.first("a")
		for range 5 {
			h.wait("a")
		}
		for range 5 {
			f.End()
			synctest.Wait()
			h.want("fetches after 0s")
			if len(h.ended) > 0 {
				t.Fatalf("%d writers go on, want 1", 1+len(h.ended))
			}
			f = <-h.going
		}
		f.End()
	})
}

func TestFetchThatStallsIsNotWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		bring func(f *content.Fetch, second int) // from the second on in which others wait
		after string
	}{
		"brings nothing": {func(*content.Fetch, int) {}, "3s"}, // 5 s since it began
		"stops": {func(f *content.Fetch, s int) {
			if s < 3 {
				f.At(int64(s) << 20)
			}
		}, "7s"},
		"trickles":         {func(f *content.Fetch, s int) { f.At(int64(s)) }, "5s"},
		"starts over":      {func(f *content.Fetch, s int) { f.At(int64(s%2) << 17) }, "5s"},
		"trickles at last": {func(f *content.Fetch, s int) { f.At(int64(min(s, 12)) << 20) }, "20s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t)
				f := h.first("a")
				pass(2 * time.Second)
				for range 3 {
					h.wait("a")
				}
				for s := 0; len(h.ended) == 0 && s < 60; s++ {
					c.bring(f, s)
					pass(time.Second)
					synctest.Wait()
				}
				h.want("fetches after " + c.after)
				if len(h.ended) > 0 {
					t.Fatalf("%d writers go on, want 1", 1+len(h.ended))
				}
				// The slow one may still be the one that has it.
				h.there = true
				f.Landed()
				f.End()
				h.want("has after " + c.after)
				h.want("has after " + c.after)
			})
		})
	}
}

func TestAnotherNamespaceHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		f := h.first("attacker")
		h.wait("a")
		for s := range 10 {
			pass(time.Second)
			f.At(int64(s) << 20) // and fast
		}
		h.want("fetches after 10s")
	})
}

func TestManyAttackersHoldNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.first("attacker")
		for range 10 {
			h.wait("attacker")
		}
		began := time.Now()
		if _, how := h.start(t.Context(), "a", wantedBytes); how != "fetches" || time.Since(began) > 10*time.Second {
			t.Errorf("a writer %s after %v", how, time.Since(began))
		}
		for range 10 {
			<-h.ended // each lets the one before it go after 5 s
		}
	})
}

func TestWhoIsOfNoUseIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.lends = func(namespace string) bool { return namespace == "open" }
		h.first("a")
		h.first("b") // which may not have what a commits
		h.wait("b")
		other := wantedBytes
		other.Total++
		if _, how := h.start(t.Context(), "a", other); how != "fetches" {
			t.Errorf("a writer of another total %s", how)
		}
		other.Expected = digest.FromString("another")
		if _, how := h.start(t.Context(), "a", other); how != "fetches" {
			t.Errorf("a writer of another digest %s", how)
		}
		h.want("fetches after 5s")
	})
}

func TestCallerThatGivesUpIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		f := h.first("a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := h.fetches.Start(ctx, "a", wantedBytes, h.lends, func() (bool, error) { return false, nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start: %v", err)
		}
		failed := errors.New("failed")
		if _, err := h.fetches.Start(t.Context(), "a", wantedBytes, h.lends, func() (bool, error) { return false, failed }); !errors.Is(err, failed) {
			t.Errorf("Start: %v", err)
		}
		f.End()
		h.first("a").End()
		h.first("a").End()
	})
}

// TestWhoeverLandsFirstIsSeenByAll: also where another is waited for.
func TestWhoeverLandsFirstIsSeenByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		slow := h.first("a")
		h.lends = func(namespace string) bool { return false }
		fast := h.first("b")
		h.lends = func(namespace string) bool { return namespace == "a" }
		h.wait("c") // for the first of those whose blob it may have
		h.wait("b")
		pass(time.Second)
		h.there = true
		fast.Landed()
		h.want("has after 1s")
		h.want("has after 1s")
		fast.End()
		slow.End()
	})
}

// TestOpeningAndClosingWakesNobody: a writer that comes and goes, as often as it
// likes, has nobody look again but who waits for it.
func TestOpeningAndClosingWakesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		looks := 0
		f := h.first("a")
		go func() {
			_, _ = h.fetches.Start(t.Context(), "a", wantedBytes, h.lends, func() (bool, error) {
				looks++
				return false, nil
			})
			h.ended <- "it"
		}()
		synctest.Wait()
		other := wantedBytes
		other.Total = 1
		for range 1000 {
			g, _ := h.start(t.Context(), "attacker", other)
			g.End()
			synctest.Wait()
		}
		if looks != 1 {
			t.Errorf("%d looks, want 1", looks)
		}
		f.End()
		h.want("it")
	})
}
