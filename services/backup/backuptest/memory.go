package backuptest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/backup"
)

// Memory keeps names and values.
type Memory struct {
	// mu guards the field below it.
	mu   sync.Mutex
	rows map[string]string
}

var _ backup.Keeper = (*Memory)(nil)

// NewMemory returns one that is empty.
func NewMemory() *Memory { return &Memory{rows: make(map[string]string)} }

// Subject is m, and how to change it.
func (m *Memory) Subject() Subject {
	return Subject{
		Keeper: m,
		Set:    func(_ *testing.T, name, value string) { m.Set(name, value) },
		Get:    func(_ *testing.T, name string) string { return m.Get(name) },
	}
}

// Set sets a row.
func (m *Memory) Set(name, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows[name] = value
}

// Get returns a row.
func (m *Memory) Get(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rows[name]
}

// Backup implements [backup.Keeper].
func (m *Memory) Backup(_ context.Context, w io.Writer) error {
	m.mu.Lock()
	rows := maps.Clone(m.rows)
	m.mu.Unlock()
	b, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	_, err = w.Write(append(sum[:], b...))
	return err
}

// Restore implements [backup.Keeper].
func (m *Memory) Restore(_ context.Context, r io.Reader) (backup.Report, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return backup.Report{}, err
	}
	rows := map[string]string{}
	if len(b) < sha256.Size {
		return backup.Report{}, notWhole()
	}
	sum := sha256.Sum256(b[sha256.Size:])
	if !bytes.Equal(sum[:], b[:sha256.Size]) || json.Unmarshal(b[sha256.Size:], &rows) != nil {
		return backup.Report{}, notWhole()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows = rows
	return backup.Report{Records: int64(len(rows))}, nil
}

func notWhole() error { return fmt.Errorf("this is no whole backup: %w", errdefs.ErrDataLoss) }
