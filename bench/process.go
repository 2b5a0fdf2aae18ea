package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// childOf returns the child of a process that runs the named executable.
func childOf(parent int, name string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, file := range all {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		// pid (comm) state ppid
		pid, rest, _ := bytes.Cut(stat, []byte(" ("))
		comm, rest, _ := bytes.Cut(rest, []byte(") "))
		f := bytes.Fields(rest)
		if string(comm) == name && len(f) > 1 && string(f[1]) == strconv.Itoa(parent) {
			return strconv.Atoi(string(pid))
		}
	}
	return 0, fmt.Errorf("process %d has no %s", parent, name)
}

// pss is what a process has of memory, its share of what it shares included.
func pss(pid int) (mib float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "Pss: %f kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d tells no Pss", pid)
}

// printMemory prints what the daemons have when nobody has called them for a
// while.
func (r *rules) printMemory(ctx context.Context, out io.Writer, doors []*door, idle time.Duration, when string) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idle):
	}
	var mib [2]float64
	for i, d := range doors[:2] {
		pid, err := d.daemon()
		if err != nil {
			return err
		}
		if mib[i], err = pss(pid); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "| Idle memory (PSS), %s | %.1f MiB | %.1f MiB | %.2f | | |\n", when, mib[0], mib[1], mib[1]/mib[0])
	r.hold("memory", mib[1])
	return nil
}

// printMemories prints it after all the works, and after a restart of ours.
func (r *rules) printMemories(ctx context.Context, out io.Writer, doors []*door, idle time.Duration) error {
	if err := r.printMemory(ctx, out, doors, idle, fmt.Sprintf("%v after the above", idle)); err != nil {
		return err
	}
	pid, err := doors[1].daemon()
	if err != nil {
		return err
	}
	// gantryctl up starts it again.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for again := pid; again == pid || again == 0; again, _ = doors[1].daemon() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return r.printMemory(ctx, out, doors, idle, "ours started again")
}

// syncCalls are what waits for a disk.
const syncCalls = "fsync,fdatasync,msync,sync_file_range,syncfs,sync"

// printSyncs counts what a small blob waits for. Counting is slow, so that it is
// no part of what is timed.
func (b *contentBench) printSyncs(ctx context.Context, out io.Writer) error {
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Fprintln(out, "| Syncs per small blob | strace is not installed | | | | |")
		return nil
	}
	for _, writers := range []int{1, b.writers} {
		var per [2]float64
		var kinds [2]string
		for i, d := range b.doors[:2] {
			const n = 200
			blobs := smallBlobs(d.seed, 1<<20+writers, n)
			count, err := syncsOf(ctx, d, func() error {
				_, err := each(n, writers, func(i int) error { return d.put(in(ctx, "small"), blobs[i]) })
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			per[i], kinds[i] = float64(count.total)/n, count.kinds
		}
		fmt.Fprintf(out, "| Syncs per 4 KiB blob written, %d writers (%s; %s) | %.1f | %.1f | %.2f | | |\n",
			writers, kinds[0], kinds[1], per[0], per[1], per[1]/per[0])
	}
	return nil
}

// A syncCount is how often a process asked that something be on the disk.
type syncCount struct {
	total int
	kinds string
}

// syncsOf counts while do runs.
func syncsOf(ctx context.Context, d *door, do func() error) (syncCount, error) {
	pid, err := d.daemon()
	if err != nil {
		return syncCount{}, err
	}
	table, err := os.CreateTemp("", "gantry-bench-strace-")
	if err != nil {
		return syncCount{}, err
	}
	defer os.Remove(table.Name())
	defer table.Close()
	c := exec.CommandContext(ctx, "strace", "-f", "-c", "-e", "trace="+syncCalls, "-o", table.Name(), "-p", strconv.Itoa(pid))
	said, err := c.StderrPipe()
	if err != nil {
		return syncCount{}, err
	}
	if err := c.Start(); err != nil {
		return syncCount{}, err
	}
	if _, err := said.Read(make([]byte, 1)); err != nil { // that it is attached
		return syncCount{}, errors.Join(err, c.Wait())
	}
	err = do()
	_ = c.Process.Signal(syscall.SIGINT)
	_, _ = io.Copy(io.Discard, said)
	_ = c.Wait() // it says that it was interrupted
	if err != nil {
		return syncCount{}, err
	}
	return readCount(table)
}

// readCount reads strace's table: time, seconds, µs a call, calls, call.
func readCount(r io.Reader) (syncCount, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return syncCount{}, err
	}
	var count syncCount
	var kinds []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.Contains(","+syncCalls+",", ","+f[len(f)-1]+",") {
			continue
		}
		n, err := strconv.Atoi(f[3])
		if err != nil {
			return syncCount{}, fmt.Errorf("strace said %q", line)
		}
		count.total += n
		kinds = append(kinds, fmt.Sprintf("%d %s", n, f[len(f)-1]))
	}
	count.kinds = strings.Join(kinds, ", ")
	return count, nil
}
