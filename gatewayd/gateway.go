package gatewayd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/filter"
	"github.com/gantryd/gantry/services/suite"
)

// describeTime is how long a daemon has to describe itself.
const describeTime = 2 * time.Second

// speaks is the version of containerd whose API and behaviour clients find.
const speaks = "2.4.2"

// Needs are what a gateway is told.
type Needs struct {
	Daemons  map[string]suite.Describer // the others, by name
	Plugins  []suite.Plugin             // the gateway's own
	Version  string                     // of the suite
	Revision string                     // of its source
	Log      *slog.Logger
}

// A Gateway answers for the suite as a whole.
type Gateway struct {
	needs Needs
	uuid  string
	pidns uint64

	// mu guards what each daemon last said.
	mu   sync.Mutex
	last map[string][]suite.Plugin
}

var _ suite.Node = (*Gateway)(nil)

// Open makes the root, tightens it, and reads or makes the node's uuid. A uuid
// file that holds something else is [errdefs.ErrFailedPrecondition].
func Open(cfg Config, needs Needs) (*Gateway, error) {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	uuid, err := uuidIn(cfg.Root)
	if err != nil {
		return nil, err
	}
	fi, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("pid namespace: %w", err)
	}
	stat, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("pid namespace: no inode: %w", errdefs.ErrInternal)
	}
	return &Gateway{needs: needs, uuid: uuid, pidns: stat.Ino, last: map[string][]suite.Plugin{}}, nil
}

// notInVersion is what build metadata of a semantic version may not hold.
var notInVersion = regexp.MustCompile(`[^0-9A-Za-z.-]+`)

// Version implements [suite.Node]. The suite's own version is build metadata,
// which clients that compare versions leave out.
func (g *Gateway) Version(context.Context) (suite.Version, error) {
	own := strings.Trim(notInVersion.ReplaceAllString(g.needs.Version, "."), ".")
	return suite.Version{Version: "v" + speaks + "+gantry." + own, Revision: g.needs.Revision}, nil
}

// Server implements [suite.Node].
func (g *Gateway) Server(context.Context) (suite.Server, error) {
	return suite.Server{UUID: g.uuid, Pid: os.Getpid(), PidNamespace: g.pidns}, nil
}

// Plugins implements [suite.Node].
func (g *Gateway) Plugins(ctx context.Context, filters ...string) ([]suite.Plugin, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	var matching []suite.Plugin
	for _, p := range g.all(ctx) {
		if f.Match(func(path []string) (string, bool) { return field(p, path) }) {
			matching = append(matching, p)
		}
	}
	return matching, nil
}

// Plugin implements [suite.Node].
func (g *Gateway) Plugin(ctx context.Context, typ, id string) (suite.Plugin, error) {
	for _, p := range g.all(ctx) {
		if p.Type == typ && p.ID == id {
			return p, nil
		}
	}
	return suite.Plugin{}, fmt.Errorf("plugin %s.%s: %w", typ, id, errdefs.ErrNotFound)
}

func field(p suite.Plugin, path []string) (string, bool) {
	if len(path) != 1 {
		return "", false
	}
	switch path[0] {
	case "type":
		return p.Type, p.Type != ""
	case "id":
		return p.ID, p.ID != ""
	}
	return "", false
}

// all asks every daemon at once.
func (g *Gateway) all(ctx context.Context) []suite.Plugin {
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	var wg sync.WaitGroup
	for name, d := range g.needs.Daemons {
		wg.Go(func() {
			description, err := d.Describe(ctx)
			if err != nil {
				g.needs.Log.DebugContext(ctx, "daemon does not describe itself", "of", name, "err", err)
				return
			}
			g.mu.Lock()
			g.last[name] = description.Plugins
			g.mu.Unlock()
		})
	}
	wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []suite.Plugin
	for _, d := range suite.Daemons {
		if d.Name == suite.Gatewayd {
			all = append(all, g.needs.Plugins...)
			continue
		}
		all = append(all, g.last[d.Name]...)
	}
	return slices.Clip(all)
}

// Away is the error of a call to a daemon that did not come back in time. It is
// [errdefs.ErrUnavailable], but for Content's Write: to clients that open a
// writer unavailable means that another holds the ref, and they try again for
// ever, so there it is [errdefs.ErrAborted].
func Away(daemon, method string) error {
	if method == "/containerd.services.content.v1.Content/Write" {
		return fmt.Errorf("%s is down: %w", daemon, errdefs.ErrAborted)
	}
	return fmt.Errorf("%s is down: %w", daemon, errdefs.ErrUnavailable)
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// uuidIn reads the uuid of the node from root, or makes it.
func uuidIn(root string) (string, error) {
	path := filepath.Join(root, "uuid")
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		uuid := newUUID()
		return uuid, writeSynced(root, path, uuid+"\n")
	case err != nil:
		return "", err
	}
	uuid := strings.TrimSpace(string(b))
	if !uuidForm.MatchString(uuid) {
		return "", fmt.Errorf("%s does not hold a uuid: %w", path, errdefs.ErrFailedPrecondition)
	}
	return uuid, nil
}

// newUUID returns a random one, version 4.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// writeSynced puts a file into dir that is whole or absent.
func writeSynced(dir, path, text string) error {
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
