package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/gantryd/gantry/services/suite"
)

// A self is this process as it describes itself.
type self struct {
	name    string
	plugins []suite.Plugin
	outbox  func() (suite.Outbox, error) // may be nil
	started time.Time
}

var _ suite.Describer = self{}

func newSelf(s Serving) self {
	return self{name: s.Name, plugins: s.Plugins, outbox: s.Outbox, started: time.Now()}
}

// Describe implements [suite.Describer].
func (s self) Describe(context.Context) (suite.Description, error) {
	memory, err := resident()
	if err != nil {
		return suite.Description{}, err
	}
	d := suite.Description{
		Daemon:  s.name,
		Version: Version(),
		Pid:     os.Getpid(),
		Started: s.started,
		Memory:  memory,
		Plugins: s.plugins,
	}
	if s.outbox == nil {
		return d, nil
	}
	// A database that cannot be read is no reason to say nothing.
	if o, err := s.outbox(); err == nil {
		d.Outbox = &o
	}
	return d, nil
}

// resident returns this process's resident memory in bytes.
func resident() (int64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/self/statm: %q", b)
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %w", err)
	}
	return pages * int64(os.Getpagesize()), nil
}
