package eventbus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// sayMax is how many errors of the server are logged in a second. A peer can
// cause as many as it likes.
const sayMax = 5

// A logger takes what the NATS server says.
type logger struct {
	log *slog.Logger

	// mu guards the fields below it.
	mu     sync.Mutex
	second int64
	said   int
	unsaid int
}

func (l *logger) Noticef(f string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(f, v...)) }
func (l *logger) Warnf(f string, v ...any)   { l.say(slog.LevelWarn, f, v) }
func (l *logger) Errorf(f string, v ...any)  { l.say(slog.LevelError, f, v) }
func (l *logger) Debugf(f string, v ...any)  { l.log.Debug("nats: " + fmt.Sprintf(f, v...)) }
func (l *logger) Tracef(f string, v ...any)  { l.log.Debug("nats: " + fmt.Sprintf(f, v...)) }

// Fatalf is what the server says before it would end the process, if it could.
func (l *logger) Fatalf(f string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }

func (l *logger) say(level slog.Level, f string, v []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now().Unix(); now != l.second {
		if l.unsaid > 0 {
			l.log.Warn("nats: more was not logged", "count", l.unsaid)
		}
		l.second, l.said, l.unsaid = now, 0, 0
	}
	if l.said++; l.said > sayMax {
		l.unsaid++
		return
	}
	l.log.Log(context.Background(), level, "nats: "+fmt.Sprintf(f, v...))
}
