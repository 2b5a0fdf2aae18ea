package eventbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/eventbus/journal"
	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventnats"
)

const (
	payloadMax     = 1 << 20
	namesMax       = 48 << 10              // bytes of all that an event says beside its payload
	messageMax     = payloadMax + 3*64<<10 // of which a byte takes three where it is escaped
	pendingMax     = 5 << 19               // bytes that wait for a connection that does not read
	connectionsMax = 1024
	openTime       = 30 * time.Second
)

// Needs are what a bus uses.
type Needs struct {
	Log *slog.Logger
}

// A Bus is the event bus of a node.
type Bus struct {
	cfg     Config
	log     *slog.Logger
	lock    *os.File
	roles   *roles
	server  *server.Server
	conn    *eventnats.Bus // ours to the server
	journal *journal.Journal
	epoch   string
	window  window
	ear     ear
	readers readers
	carried chan struct{} // closed when the bus has its connections to the server
}

var _ event.Bus = (*Bus)(nil)

// Open opens or makes the stream. A directory that another process has open, or
// that has something else in it, is [errdefs.ErrFailedPrecondition].
func Open(cfg Config, needs Needs) (_ *Bus, err error) {
	b := &Bus{cfg: cfg, log: needs.Log, carried: make(chan struct{}), ear: ear{wake: make(chan struct{}, 1)}}
	if b.lock, err = lockRoot(cfg.Root); err != nil {
		return nil, fmt.Errorf("event stream %s: %w", cfg.Root, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if b.journal, err = journal.Open(journal.Options{
		Dir:   filepath.Join(cfg.Root, streamName),
		Bytes: cfg.retainBytes(),
		Age:   cfg.retainTime(),
		Log:   b.log,
		Told:  b.told,
	}); err != nil {
		return nil, err
	}
	b.epoch = b.journal.Epoch()
	_, last := b.journal.Bounds()
	b.window.reset(last + 1)
	if b.roles, err = newRoles(cfg, b.log); err != nil {
		return nil, err
	}
	return b, b.start()
}

// start starts the server.
func (b *Bus) start() (err error) {
	if b.server, err = b.newServer(); err != nil {
		return err
	}
	b.server.SetLoggerV2(&logger{log: b.log}, false, false, false)
	b.server.Start()
	if !b.server.ReadyForConnections(openTime) {
		return fmt.Errorf("the NATS server does not start: %w", errdefs.ErrInternal)
	}
	b.conn, err = eventnats.In(b.server, roleBus, b.roles.byName[roleBus].secret)
	return err
}

func (b *Bus) newServer() (*server.Server, error) {
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

// What is in the root.
const (
	streamName = "stream" // the journal's directory
	lockName   = "lock"
)

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
		switch e.Name() {
		case streamName, lockName, placeName, placeName + ".new", "lost+found":
		default:
			return nil, fmt.Errorf("not an event stream: there is %q: %w", e.Name(), errdefs.ErrFailedPrecondition)
		}
	}
	f, err := os.OpenFile(filepath.Join(root, lockName), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("in use by another process: %w", errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// Publish implements event.Publisher.
func (b *Bus) Publish(ctx context.Context, e event.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.Check(); err != nil {
		return err
	}
	return b.store(e)[0]
}

// store returns when events are on the disk, in order, or why each is not.
func (b *Bus) store(events ...event.Event) []error {
	errs := make([]error, len(events))
	var records []journal.Record
	var taken []int
	for i, e := range events {
		e = e.Stamp(time.Now(), "eventbus")
		e.Subject = e.About()
		r, err := toRecord(e)
		if err != nil {
			errs[i] = err
			continue
		}
		records, taken = append(records, r), append(taken, i)
	}
	if len(records) == 0 {
		return errs
	}
	if _, err := b.journal.Append(records...); err != nil {
		for _, i := range taken {
			errs[i] = err
		}
	}
	return errs
}

// told gives to subscribers what is on the disk.
func (b *Bus) told(records []journal.Record) {
	events := make([]event.Event, len(records))
	for i, r := range records {
		events[i] = r.Value.(event.Event)
		events[i].Sequence, events[i].Epoch = r.Sequence, b.epoch
	}
	b.window.add(events)
	b.hear(events)
}

// Close closes the stream.
func (b *Bus) Close() error {
	if b.conn != nil {
		b.conn.Close()
	}
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}
	var err error
	if b.journal != nil {
		err = b.journal.Close()
	}
	return errors.Join(err, b.lock.Close())
}
