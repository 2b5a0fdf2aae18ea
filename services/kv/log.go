package kv

import (
	"fmt"
	"log/slog"
	"strings"
)

// A logger takes what Badger says. What it calls information is of use only to
// who looks for a fault.
type logger struct{ log *slog.Logger }

func (l logger) Errorf(f string, v ...any)   { l.log.Error("badger: " + line(f, v)) }
func (l logger) Warningf(f string, v ...any) { l.log.Warn("badger: " + line(f, v)) }
func (l logger) Infof(f string, v ...any)    { l.log.Debug("badger: " + line(f, v)) }
func (l logger) Debugf(f string, v ...any)   { l.log.Debug("badger: " + line(f, v)) }

func line(f string, v []any) string { return strings.TrimSpace(fmt.Sprintf(f, v...)) }
