package eventbus

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRefusalsAreLoggedTogether(t *testing.T) {
	var log bytes.Buffer
	r := refusals{log: slog.New(slog.NewTextHandler(&log, nil))}
	at := time.Now()
	for i := range 100_000 {
		r.add(at.Add(time.Duration(i)*100*time.Microsecond), errors.New("no"))
	}
	r.add(at.Add(refusalTime), errors.New("no"))
	if got := strings.Count(log.String(), "\n"); got != 2 || !strings.Contains(log.String(), "count=100000") {
		t.Errorf("%d lines are logged:\n%s", got, log.String())
	}
}
