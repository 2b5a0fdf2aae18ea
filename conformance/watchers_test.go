package conformance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

// told is what a subscriber remembers of an event.
type told struct {
	Epoch, ID, Namespace, Topic, Subject string
	Sequence                             uint64
	Status                               uint32
	Content                              string
}

func toTold(e event.Event) told {
	t := told{Epoch: e.Epoch, Sequence: e.Sequence, ID: e.ID, Namespace: e.Namespace, Topic: e.Topic, Subject: e.Subject, Content: string(e.JSON)}
	if t.Content == "" {
		t.Content = string(e.Raw)
	}
	var p struct {
		ContainerID string `json:"container_id"`
		ExitStatus  uint32 `json:"exit_status"`
	}
	if json.Unmarshal(e.JSON, &p) == nil {
		t.Status = p.ExitStatus
	}
	return t
}

// what is an event without its place.
func (t told) what() told {
	t.Epoch, t.Sequence = "", 0
	return t
}

// A watcher is a durable subscriber.
type watcher interface {
	name() string
	told() ([]told, error) // so far; an error is a gap or its end
	mayRepeat() bool       // what it was told may be told to it again
}

// A followWatcher is a subscriber in this process.
type followWatcher struct {
	label string

	mu  sync.Mutex
	all []told // guarded by mu
	err error  // guarded by mu
}

func (w *followWatcher) name() string    { return w.label }
func (w *followWatcher) mayRepeat() bool { return false }

func (w *followWatcher) told() ([]told, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all, w.err
}

func (c *chaos) watch(label string, bus event.Bus) *followWatcher {
	c.t.Helper()
	w := &followWatcher{label: label}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	ended := make(chan struct{})
	c.t.Cleanup(func() { cancel(); <-ended })
	events, err := (&client.Client{Events: bus}).Follow(ctx, event.SubscribeOptions{})
	if err != nil {
		close(ended)
		c.t.Fatal(err)
	}
	go func() {
		defer close(ended)
		for e, err := range events {
			w.mu.Lock()
			if err != nil {
				w.err = fmt.Errorf("after %d events: %w", len(w.all), err)
			} else {
				w.all = append(w.all, toTold(e))
			}
			w.mu.Unlock()
		}
	}()
	return w
}

func (c *chaos) dialNATS(socket string) event.Bus {
	c.t.Helper()
	bus, err := eventnats.Dial(socket)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(bus.Close)
	return bus
}

const (
	childSocket = "GANTRY_TEST_NATS" // the child connects here
	childFile   = "GANTRY_TEST_FILE" // and writes what it is told
)

// A childWatcher is a process, as a plugin is one.
type childWatcher struct {
	t            testing.TB
	socket, file string
	cmd          *exec.Cmd
}

func (c *chaos) watchInChild() *childWatcher {
	w := &childWatcher{t: c.t, socket: filepath.Join(c.state, "nats.sock"), file: filepath.Join(c.t.TempDir(), "told")}
	c.t.Cleanup(w.end)
	w.start()
	return w
}

func (w *childWatcher) start() {
	w.cmd = testChild("TestChaosSubscriber", childSocket+"="+w.socket, childFile+"="+w.file)
	w.cmd.Stdout, w.cmd.Stderr = w.t.Output(), w.t.Output()
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *childWatcher) end() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}

func (w *childWatcher) restart() { w.end(); w.start() }

func (w *childWatcher) name() string    { return "a process that is killed" }
func (w *childWatcher) mayRepeat() bool { return true }

func (w *childWatcher) told() ([]told, error) {
	f, err := os.Open(w.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, _, err := readTold(f)
	return all, err
}

// readTold reads whole lines; what a kill cut off does not count.
func readTold(f io.Reader) (all []told, size int64, err error) {
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return all, size, nil
		}
		if bytes.HasPrefix(line, []byte("error ")) {
			return all, size, fmt.Errorf("%s", bytes.TrimSpace(line))
		}
		var t told
		if err := json.Unmarshal(line, &t); err != nil {
			return all, size, err
		}
		all, size = append(all, t), size+int64(len(line))
	}
}

// TestChaosSubscriber is the process of a childWatcher.
func TestChaosSubscriber(t *testing.T) {
	file := os.Getenv(childFile)
	if file == "" {
		t.Skip("is run by TestChaosLosesNoEvent")
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, size, err := readTold(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(size, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	bus, err := client.DialBus(os.Getenv(childSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Error(bus.Subscribe(t.Context(), client.Subscription{
		Name:   "chaos",
		Cursor: file + ".cursor",
		Handle: func(_ context.Context, e event.Event) error {
			b, err := json.Marshal(toTold(e))
			if err != nil {
				return err
			}
			_, err = f.Write(append(b, '\n'))
			return err
		},
		Relist: func(_ context.Context, lost *event.Gap) error {
			if lost == nil {
				return nil
			}
			_, err := fmt.Fprintf(f, "error %v\n", lost)
			return err
		},
	}))
}
