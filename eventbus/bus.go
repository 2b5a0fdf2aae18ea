package eventbus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
	"github.com/gantryd/gantry/services/filter"
)

const (
	messageMax     = 1 << 20
	memoryMax      = 16 << 20 // of streams in memory, of which we have none
	pendingMax     = 5 << 19  // bytes that wait for a connection that does not read
	connectionsMax = 1024
	sameIDTime     = time.Hour
	openTime       = 30 * time.Second
)

// Needs are what a bus uses.
type Needs struct {
	Log *slog.Logger
}

// A Bus is the event bus of a node. Subscribe tells nothing until Deliver runs.
type Bus struct {
	cfg    Config
	log    *slog.Logger
	lock   *os.File
	roles  *roles
	server *server.Server
	stream *eventnats.Bus
	epoch  string
	window window

	// past is a connection for rereads, so that what they read does not stand
	// before acknowledgements; rereads holds one for each that there is.
	past    *eventnats.Bus
	rereads chan struct{}
	readers readers

	found bool // a stream, or what is left of one, was there
	mark  mark // of Open, then of Watch, then of Close
}

var _ event.Bus = (*Bus)(nil)

// Open opens or makes the stream. A directory that another process has open, or
// that has something else in it, is [errdefs.ErrFailedPrecondition].
func Open(cfg Config, needs Needs) (_ *Bus, err error) {
	b := &Bus{cfg: cfg, log: needs.Log, rereads: make(chan struct{}, rereadsMax)}
	if b.lock, err = lockRoot(cfg.Root); err != nil {
		return nil, fmt.Errorf("event stream %s: %w", cfg.Root, err)
	}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if b.roles, err = newRoles(cfg, b.log); err != nil {
		return nil, err
	}
	if err := b.recoverStream(); err != nil {
		return nil, fmt.Errorf("event stream %s: %w", cfg.Root, err)
	}
	return b, nil
}

// start starts the server and opens or makes the stream.
func (b *Bus) start() (err error) {
	if b.server, err = b.newServer(); err != nil {
		return err
	}
	b.server.SetLoggerV2(&logger{log: b.log}, false, false, false)
	b.server.Start()
	if !b.server.JetStreamEnabled() {
		return b.damaged("the server does not open its store")
	}
	if !b.server.ReadyForConnections(openTime) {
		return fmt.Errorf("the server does not start: %w", errdefs.ErrInternal)
	}
	if b.stream, err = eventnats.In(b.server, roleBus, b.roles.byName[roleBus].secret); err != nil {
		return err
	}
	if b.past, err = eventnats.In(b.server, roleBus, b.roles.byName[roleBus].secret); err != nil {
		return err
	}
	return b.makeStream()
}

func (b *Bus) newServer() (*server.Server, error) {
	if err := moveStream(b.cfg.Root); err != nil {
		return nil, err
	}
	o := &server.Options{
		ServerName:      "gantry",
		DontListen:      true,
		NoSigs:          true, // signals belong to main
		NoSystemAccount: true,

		CustomClientAuthentication: b.roles,

		MaxConn:           connectionsMax + len(b.cfg.Plugins)*(pluginConnections+1) + tcpConnections + 8,
		AuthTimeout:       (2 * greetingTime).Seconds(),
		AlwaysEnableNonce: true, // for keys
		MaxPayload:        messageMax,
		MaxPending:        pendingMax,
		// Whoever does not read is told less, and closed: it does not hold up
		// those who publish.
		NoFastProducerStall: true,

		JetStream:          true,
		StoreDir:           b.cfg.Root, // the server adds "jetstream"
		SyncAlways:         true,
		JetStreamMaxMemory: memoryMax,
		JetStreamMaxStore:  2*b.cfg.retainBytes() + 64<<20,
	}
	config, err := accounts(b.cfg)
	if err != nil {
		return nil, err
	}
	if err := o.ProcessConfigString(config); err != nil {
		return nil, err
	}
	if b.cfg.Leaf.URL != "" {
		// The bus is there without the fleet.
		if remote, err := b.cfg.Leaf.remote(); err != nil {
			b.log.Error("no connection to the fleet until the bus starts again", "err", err)
		} else {
			o.LeafNode.Remotes = append(o.LeafNode.Remotes, remote)
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	return s, b.roles.in(s)
}

// lockRoot makes the directory and keeps others out of it.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(root, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == storeName, name == "lock", name == "lost+found", name == markName, name == markName+".new", name == placeName, name == placeName+".new":
		case strings.HasPrefix(name, asidePrefix):
		default:
			return nil, fmt.Errorf("not an event stream: there is %q: %w", name, errdefs.ErrFailedPrecondition)
		}
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("in use by another process: %w", errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// makeStream makes the stream, or gives the one there is the config's limits.
func (b *Bus) makeStream() error {
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	js := b.stream.JetStream()
	want := jetstream.StreamConfig{
		Name:        eventnats.Stream,
		Subjects:    []string{eventnats.Subjects},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		Storage:     jetstream.FileStorage,
		Replicas:    1,
		MaxAge:      b.cfg.retainTime(),
		MaxBytes:    b.cfg.retainBytes(),
		MaxMsgSize:  messageMax,
		Duplicates:  min(sameIDTime, b.cfg.retainTime()),
		AllowDirect: true,
		Metadata:    map[string]string{eventnats.Epoch: newEpoch()},
	}
	have, err := js.Stream(ctx, eventnats.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if b.found {
			return b.damaged("the server does not know the stream")
		}
		if b.mark.Epoch != "" {
			b.log.Error("the event stream is gone: its subscribers are told a gap", "epoch", b.mark.Epoch, "mark", b.mark.Sequence)
		}
		b.epoch = want.Metadata[eventnats.Epoch]
		b.log.Info("made the event stream", "epoch", b.epoch)
		if _, err = js.CreateStream(ctx, want); err == nil {
			b.vetted(0)
		}
		return err
	}
	if err != nil {
		return err
	}
	info := have.CachedInfo()
	if info.Config.Metadata[eventnats.Epoch] == "" {
		return b.damaged("the stream does not say which it is")
	}
	b.epoch = b.vet(info)
	want.Metadata = maps.Clone(info.Config.Metadata)
	want.Metadata[eventnats.Epoch] = b.epoch
	b.log.Info("opened the event stream", "epoch", b.epoch, "first", info.State.FirstSeq, "last", info.State.LastSeq)
	// The server does not change a stream's config in one step: only if it has to.
	if !same(info.Config, want) {
		_, err = js.UpdateStream(ctx, want)
	}
	if err == nil {
		b.vetted(info.State.LastSeq)
	}
	return err
}

// same says whether two configs agree in what we set.
func same(a, b jetstream.StreamConfig) bool {
	return slices.Equal(a.Subjects, b.Subjects) && a.Retention == b.Retention && a.Discard == b.Discard &&
		a.MaxAge == b.MaxAge && a.MaxBytes == b.MaxBytes && a.MaxMsgSize == b.MaxMsgSize &&
		a.Duplicates == b.Duplicates && a.AllowDirect == b.AllowDirect && maps.Equal(a.Metadata, b.Metadata)
}

func newEpoch() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Publish implements event.Publisher.
func (b *Bus) Publish(ctx context.Context, e event.Event) error { return b.stream.Publish(ctx, e) }

// Subscribe implements event.Subscriber.
func (b *Bus) Subscribe(ctx context.Context, o event.SubscribeOptions) (iter.Seq2[event.Event, error], error) {
	f, err := filter.Parse(o.Filters...)
	if err != nil {
		return nil, err
	}
	at, err := b.stream.Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	if o.Reached != nil {
		o.Reached(at)
	}
	return func(yield func(event.Event, error) bool) {
		for {
			events, err := b.next(ctx, nil, at.Sequence+1)
			if err != nil {
				yield(event.Event{}, err)
				return
			}
			for _, e := range events {
				if ctx.Err() != nil {
					break // said above
				}
				at.Sequence = e.Sequence
				if e.ID != "" && f.Match(e.Fields()) && !yield(e, nil) {
					return
				}
			}
		}
	}, nil
}

// Deliver reads the stream for all subscribers until ctx ends. It is a work of
// the daemon and runs once at a time.
func (b *Bus) Deliver(ctx context.Context) error {
	for {
		at, err := b.stream.Begin(ctx, event.SubscribeOptions{})
		if err == nil {
			b.window.reset(at.Sequence + 1)
			err = b.deliver(ctx, at)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.log.Warn("reading the stream again", "err", err)
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
}

func (b *Bus) deliver(ctx context.Context, at event.Cursor) error {
	for e, err := range b.stream.Read(ctx, at) {
		if err != nil {
			return err
		}
		if e.ID == "" {
			b.log.Warn("a message in the stream is not an event", "sequence", e.Sequence)
		}
		b.window.add(e)
	}
	return nil
}

// Close closes the stream.
func (b *Bus) Close() error {
	last := uint64(0)
	if b.stream != nil && b.epoch != "" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		last, _ = b.selfTest(ctx)
		cancel()
	}
	b.stop()
	b.markEnd(last)
	return b.lock.Close()
}

// stop stops the server, if it runs.
func (b *Bus) stop() {
	if b.stream != nil {
		b.stream.Close()
	}
	if b.past != nil {
		b.past.Close()
	}
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}
}
