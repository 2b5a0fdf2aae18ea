package netd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/services/ident"
	"github.com/gantryd/gantry/services/network"
)

// hostLocalDir is where host-local keeps addresses unless told otherwise.
const hostLocalDir = "/var/lib/cni/networks"

// collect removes what has no record of ours and yet is ours: only a lost root
// directory leaves such. Plugins that can do it themselves are told to, and the
// others by what host-local has written down.
func (s *Store) collect(ctx context.Context) {
	all, broken := s.networks()
	if broken != nil {
		s.log.Warn("some networks cannot be used", "err", broken)
	}
	for _, n := range all {
		if err := s.collectNetwork(ctx, n); err != nil && ctx.Err() == nil {
			s.log.Warn("what is left in a network is not collected", "network", n.name, "err", err)
		}
	}
	if err := s.unpin(); err != nil {
		s.log.Warn("a network namespace that nobody has stays", "err", err)
	}
}

func (s *Store) collectNetwork(ctx context.Context, n networkFile) error {
	var errs []error
	for _, h := range n.ipam {
		dir := h.DataDir
		if dir == "" {
			dir = hostLocalDir
		}
		ids, err := leases(filepath.Join(dir, n.name))
		errs = append(errs, err)
		for _, id := range ids {
			if strings.HasPrefix(id, s.prefix) && ident.Check(id) == nil && !s.known(id) {
				errs = append(errs, s.release(ctx, n, id))
			}
		}
	}
	errs = append(errs, s.inSlot(ctx, func(ctx context.Context) error {
		return s.plugins.Collect(ctx, n.list, s.ids(n.name))
	}))
	return errors.Join(errs...)
}

// unpin lets go of namespaces that no attachment has.
func (s *Store) unpin() error {
	entries, err := os.ReadDir(filepath.Dir(s.pin("id")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		// It is pinned after it is on record, and on record for longer.
		if !s.known(e.Name()) {
			errs = append(errs, s.kernel.Unpin(s.pin(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// leases returns the ids that host-local has addresses for, in files that are
// called by the address and begin with the id.
func leases(dir string) (ids []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return ids, err
		}
		line, _ := bufio.NewReader(f).ReadString('\n')
		f.Close()
		ids = append(ids, strings.TrimSpace(line))
	}
	return ids, err
}

func (s *Store) known(id string) bool {
	_, err := os.Lstat(s.dir(id))
	return err == nil
}

func (s *Store) ids(network string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for _, r := range s.records {
		if r.Network == network {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// release undoes an attachment of which only the id is left.
func (s *Store) release(ctx context.Context, n networkFile, id string) error {
	s.log.Warn("an attachment without a record is undone", "network", n.name, "id", id)
	// portmap does nothing where no port is named, and removes all of an id
	// where one is, whichever.
	some := []network.Port{{Host: 1, Container: 1, Protocol: "tcp"}}
	r := &record{ID: id, List: n.list, Ports: some}
	if err := s.disk.Mkdir(s.dir(id)); err != nil {
		return err
	}
	path := s.pin(id)
	_, pinned, err := s.kernel.Pinned(path)
	if err != nil {
		return err
	}
	if !pinned {
		path = ""
	}
	if err := s.inSlot(ctx, func(ctx context.Context) error { return s.plugins.Del(ctx, s.call(r, path)) }); err != nil {
		return fmt.Errorf("attachment %s: %w", id, err)
	}
	if err := s.kernel.Unpin(s.pin(id)); err != nil {
		return err
	}
	return s.forget(r)
}
