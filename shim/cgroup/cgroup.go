// Package cgroup measures and signals a container's processes by the cgroup
// that the OCI runtime has put them into, of either version.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/runner"
)

const cgroupMount = "/sys/fs/cgroup"

// killRounds bounds how often a cgroup is read again for processes that were
// born meanwhile.
const killRounds = 64

// A Cgroup is where a container's processes are. Its directories are read from
// its first process, since only the OCI runtime knows how it names them.
type Cgroup struct {
	unified     string            // directory in the unified hierarchy; empty if it does not limit anything
	controllers map[string]string // directories by controller, cgroup v1
}

// Of finds the cgroup of a process. What is not found is left empty: a
// container is not refused because it cannot be measured.
func Of(pid int) Cgroup {
	c := Cgroup{controllers: map[string]string{}}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return c
	}
	var st unix.Statfs_t
	onlyUnified := unix.Statfs(cgroupMount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || parts[2] == "/" {
			continue // the root is not a container's
		}
		names, path := parts[1], parts[2]
		switch {
		case names == "" && onlyUnified:
			c.unified = existing(filepath.Join(cgroupMount, path))
		case names == "" || onlyUnified:
		default:
			for name := range strings.SplitSeq(names, ",") {
				dir := existing(filepath.Join(cgroupMount, strings.TrimPrefix(name, "name="), path))
				if dir == "" {
					dir = existing(filepath.Join(cgroupMount, names, path))
				}
				if dir != "" {
					c.controllers[name] = dir
				}
			}
		}
	}
	return c
}

func existing(dir string) string {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return ""
	}
	return dir
}

// Known reports whether there is anything to measure and to signal.
func (c Cgroup) Known() bool { return c.dir() != "" }

// dir is a directory that has all of the container's processes.
func (c Cgroup) dir() string {
	if c.unified != "" {
		return c.unified
	}
	for _, name := range []string{"devices", "pids", "memory", "freezer", "cpu"} {
		if d := c.controllers[name]; d != "" {
			return d
		}
	}
	return ""
}

// Pids returns the processes in the cgroup and in those below it.
func (c Cgroup) Pids() ([]uint32, error) {
	dir := c.dir()
	if dir == "" {
		return nil, errors.New("the container's cgroup is not known")
	}
	var pids []uint32
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil // gone meanwhile, or threaded, and then its processes are above
		}
		for field := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.ParseUint(field, 10, 32)
			if err == nil && pid != 0 {
				pids = append(pids, uint32(pid))
			}
		}
		return nil
	})
	return pids, err
}

// Signal sends a signal once to each process of the cgroup, with those that
// are born meanwhile.
func (c Cgroup) Signal(sig uint32) error {
	if sig == uint32(unix.SIGKILL) && c.unified != "" {
		if os.WriteFile(filepath.Join(c.unified, "cgroup.kill"), []byte("1"), 0) == nil {
			return nil
		}
	}
	told := map[uint32]bool{}
	for range killRounds {
		pids, err := c.Pids()
		if err != nil {
			return err
		}
		anyone := false
		for _, pid := range pids {
			if told[pid] {
				continue
			}
			told[pid], anyone = true, true
			if err := c.signalOne(int(pid), sig); err != nil {
				return fmt.Errorf("signal process %d: %w", pid, err)
			}
		}
		if !anyone {
			return nil
		}
	}
	return errors.New("the container's processes are born faster than they can be told")
}

// signalOne tells a process that is still in the cgroup: its number may be
// another's by now, until we hold it.
func (c Cgroup) signalOne(pid int, sig uint32) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	now := Of(pid)
	if d := now.dir(); d != c.dir() && !strings.HasPrefix(d, c.dir()+"/") {
		return nil
	}
	err = unix.PidfdSendSignal(fd, unix.Signal(sig), nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// OOMKills says how many processes of the container the kernel has killed for
// memory.
func (c Cgroup) OOMKills() uint64 {
	if c.unified != "" {
		if m := c.flat(c.unified, "memory.events.local"); m != nil {
			return m["oom_kill"]
		}
		return c.flat(c.unified, "memory.events")["oom_kill"]
	}
	if d := c.controllers["memory"]; d != "" {
		return c.flat(d, "memory.oom_control")["oom_kill"]
	}
	return 0
}

// flat reads a file of lines "word number". It is nil if there is none.
func (c Cgroup) flat(dir, name string) map[string]uint64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if n, err := strconv.ParseUint(v, 10, 64); err == nil {
				m[k] = n
			}
		}
	}
	return m
}

// number reads a file of one number; "max" is the largest.
func (c Cgroup) number(dir, name string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return 1<<64 - 1
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// Stats measures.
func (c Cgroup) Stats() (runner.Stats, error) {
	switch {
	case c.unified != "":
		return c.stats2(), nil
	case len(c.controllers) > 0:
		return c.stats1(), nil
	}
	return runner.Stats{}, errors.New("the container's cgroup is not known")
}

func (c Cgroup) stats2() runner.Stats {
	d := c.unified
	s := runner.Stats{
		Unified:    true,
		Pids:       c.number(d, "pids.current"),
		PidsMax:    c.number(d, "pids.max"),
		CPUStat:    c.flat(d, "cpu.stat"),
		MemoryStat: c.flat(d, "memory.stat"),
		OOM:        c.flat(d, "memory.events"),
		Memory: runner.MemoryUse{
			Usage: c.number(d, "memory.current"),
			Limit: c.number(d, "memory.max"),
			Max:   c.number(d, "memory.peak"),
		},
		Swap: runner.MemoryUse{
			Usage: c.number(d, "memory.swap.current"),
			Limit: c.number(d, "memory.swap.max"),
			Max:   c.number(d, "memory.swap.peak"),
		},
	}
	s.CPU = time.Duration(s.CPUStat["usage_usec"]) * time.Microsecond
	s.CPUUser = time.Duration(s.CPUStat["user_usec"]) * time.Microsecond
	s.CPUSystem = time.Duration(s.CPUStat["system_usec"]) * time.Microsecond
	b, _ := os.ReadFile(filepath.Join(d, "io.stat"))
	for line := range strings.Lines(string(b)) {
		if e, ok := parseIOStat(line); ok {
			s.IO = append(s.IO, e)
		}
	}
	return s
}

// parseIOStat reads a line such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4".
func parseIOStat(line string) (runner.IOStat, bool) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return runner.IOStat{}, false
	}
	var e runner.IOStat
	if _, err := fmt.Sscanf(fields[0], "%d:%d", &e.Major, &e.Minor); err != nil {
		return runner.IOStat{}, false
	}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(f, "=")
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			continue
		}
		switch k {
		case "rbytes":
			e.ReadBytes = n
		case "wbytes":
			e.WriteBytes = n
		case "rios":
			e.ReadOps = n
		case "wios":
			e.WriteOps = n
		}
	}
	return e, true
}

// userTick is the unit of cpuacct.stat: USER_HZ is 100 on every architecture
// that we build for.
const userTick = time.Second / 100

func (c Cgroup) stats1() runner.Stats {
	pids, acct, mem := c.controllers["pids"], c.controllers["cpuacct"], c.controllers["memory"]
	use := func(prefix string) runner.MemoryUse {
		return runner.MemoryUse{
			Usage: c.number(mem, prefix+".usage_in_bytes"),
			Max:   c.number(mem, prefix+".max_usage_in_bytes"),
			Limit: c.number(mem, prefix+".limit_in_bytes"),
			Fails: c.number(mem, prefix+".failcnt"),
		}
	}
	ticks := c.flat(acct, "cpuacct.stat")
	s := runner.Stats{
		Pids:       c.number(pids, "pids.current"),
		PidsMax:    c.number(pids, "pids.max"),
		CPU:        time.Duration(c.number(acct, "cpuacct.usage")),
		CPUUser:    time.Duration(ticks["user"]) * userTick,
		CPUSystem:  time.Duration(ticks["system"]) * userTick,
		CPUStat:    c.flat(c.controllers["cpu"], "cpu.stat"),
		Memory:     use("memory"),
		Swap:       use("memory.memsw"),
		Kernel:     use("memory.kmem"),
		KernelTCP:  use("memory.kmem.tcp"),
		MemoryStat: c.flat(mem, "memory.stat"),
		OOM:        c.flat(mem, "memory.oom_control"),
	}
	b, _ := os.ReadFile(filepath.Join(acct, "cpuacct.usage_percpu"))
	for field := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.ParseUint(field, 10, 64); err == nil {
			s.CPUs = append(s.CPUs, n)
		}
	}
	s.IO = c.throttled()
	return s
}

// throttled reads blkio's counters: lines "8:0 Read 4096".
func (c Cgroup) throttled() []runner.IOStat {
	d := c.controllers["blkio"]
	var list []runner.IOStat
	find := func(major, minor uint64) *runner.IOStat {
		for i := range list {
			if list[i].Major == major && list[i].Minor == minor {
				return &list[i]
			}
		}
		list = append(list, runner.IOStat{Major: major, Minor: minor})
		return &list[len(list)-1]
	}
	read := func(name string, set func(e *runner.IOStat, op string, n uint64)) {
		b, _ := os.ReadFile(filepath.Join(d, name))
		for line := range strings.Lines(string(b)) {
			var major, minor, n uint64
			var op string
			if _, err := fmt.Sscanf(line, "%d:%d %s %d", &major, &minor, &op, &n); err == nil {
				set(find(major, minor), op, n)
			}
		}
	}
	read("blkio.throttle.io_service_bytes_recursive", func(e *runner.IOStat, op string, n uint64) {
		switch op {
		case "Read":
			e.ReadBytes = n
		case "Write":
			e.WriteBytes = n
		}
	})
	read("blkio.throttle.io_serviced_recursive", func(e *runner.IOStat, op string, n uint64) {
		switch op {
		case "Read":
			e.ReadOps = n
		case "Write":
			e.WriteOps = n
		}
	})
	return list
}

// Join moves this process to a cgroup, which exists.
func Join(path string) error {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	onlyUnified := unix.Statfs(cgroupMount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	var errs []error
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || onlyUnified != (parts[1] == "") {
			continue
		}
		dir := existing(filepath.Join(cgroupMount, strings.TrimPrefix(parts[1], "name="), path))
		if dir == "" {
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0))
	}
	if len(errs) == 0 {
		return fmt.Errorf("cgroup %q does not exist", path)
	}
	return errors.Join(errs...)
}
