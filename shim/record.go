package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gantryd/gantry/services/runner"
)

// The records in a bundle.
const (
	runtimeRecord = "runtime.json" // a runtimeState; before the OCI runtime is called
	initRecord    = "init.json"    // a birth; when the first process exists
	exitRecord    = "exit.json"    // an exitState; before anyone is told
	holdRecord    = "events.hold"  // while it is there, events wait; made by the daemon
	eventsRecord  = "events.json"  // events that nobody has yet, one in a line
)

// A runtimeState says whom to ask for the removal of a container.
type runtimeState struct {
	ID      string         `json:"id"`
	Rootfs  bool           `json:"rootfs"` // we mounted it
	Options runner.Options `json:"options"`
}

// An exitState is how a process ended.
type exitState struct {
	ContainerID string    `json:"container_id"`
	ExecID      string    `json:"exec_id,omitempty"`
	Pid         uint32    `json:"pid"`
	Status      uint32    `json:"exit_status"`
	At          time.Time `json:"exited_at"`
	OutOfMemory bool      `json:"out_of_memory,omitempty"` // the kernel killed a process of the container for memory
}

// writeRecord replaces a record. After a crash the old one or the new one is
// there, whole. With durably, the new one is there after a power loss too.
func writeRecord(dir, name string, v any, durably bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	tmp := filepath.Join(dir, "."+name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil && durably {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	// The order is the promise: bytes, then name, then the directory that
	// holds the name.
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err == nil && durably {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

func readRecord(dir, name string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
