package taskd

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"syscall"
)

// lineMax is how much of a line of a shim's log is logged.
const lineMax = 4096

// listen logs what a task's shim writes to its log, until the task is gone. The
// FIFO is opened for both ends, so that neither waits for the other.
func (s *Store) listen(l *live) error {
	f, err := os.OpenFile(l.file(logFile), os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		defer f.Close()
		defer context.AfterFunc(l.ctx, func() { f.Close() })()
		s.logLines(l, f)
	})
	return nil
}

func (s *Store) logLines(l *live, f *os.File) {
	r := bufio.NewReaderSize(f, lineMax)
	for cut := false; ; {
		line, more, err := r.ReadLine()
		if err != nil {
			return
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && !cut {
			s.log.Info("a shim says", "namespace", l.namespace, "task", l.id, "line", string(line))
		}
		cut = more
	}
}
