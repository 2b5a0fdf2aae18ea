package shimserve

import (
	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/gantryd/gantry/services/runner"
)

// fromStats says what was measured in containerd's words for the version of
// cgroups.
func fromStats(s runner.Stats) (*anypb.Any, error) {
	var m proto.Message = metrics1(s)
	if s.Unified {
		m = metrics2(s)
	}
	b, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, err
}

func metrics2(s runner.Stats) *cgroup2.Metrics {
	mem := s.MemoryStat
	m := &cgroup2.Metrics{
		Pids: &cgroup2.PidsStat{Current: s.Pids, Limit: s.PidsMax},
		CPU: &cgroup2.CPUStat{
			UsageUsec:     s.CPUStat["usage_usec"],
			UserUsec:      s.CPUStat["user_usec"],
			SystemUsec:    s.CPUStat["system_usec"],
			NrPeriods:     s.CPUStat["nr_periods"],
			NrThrottled:   s.CPUStat["nr_throttled"],
			ThrottledUsec: s.CPUStat["throttled_usec"],
			NrBursts:      s.CPUStat["nr_bursts"],
			BurstUsec:     s.CPUStat["burst_usec"],
		},
		Memory: &cgroup2.MemoryStat{
			Anon:                  mem["anon"],
			File:                  mem["file"],
			KernelStack:           mem["kernel_stack"],
			Slab:                  mem["slab"],
			Sock:                  mem["sock"],
			Shmem:                 mem["shmem"],
			FileMapped:            mem["file_mapped"],
			FileDirty:             mem["file_dirty"],
			FileWriteback:         mem["file_writeback"],
			AnonThp:               mem["anon_thp"],
			InactiveAnon:          mem["inactive_anon"],
			ActiveAnon:            mem["active_anon"],
			InactiveFile:          mem["inactive_file"],
			ActiveFile:            mem["active_file"],
			Unevictable:           mem["unevictable"],
			SlabReclaimable:       mem["slab_reclaimable"],
			SlabUnreclaimable:     mem["slab_unreclaimable"],
			Pgfault:               mem["pgfault"],
			Pgmajfault:            mem["pgmajfault"],
			WorkingsetRefault:     mem["workingset_refault"],
			WorkingsetActivate:    mem["workingset_activate"],
			WorkingsetNodereclaim: mem["workingset_nodereclaim"],
			Pgrefill:              mem["pgrefill"],
			Pgscan:                mem["pgscan"],
			Pgsteal:               mem["pgsteal"],
			Pgactivate:            mem["pgactivate"],
			Pgdeactivate:          mem["pgdeactivate"],
			Pglazyfree:            mem["pglazyfree"],
			Pglazyfreed:           mem["pglazyfreed"],
			ThpFaultAlloc:         mem["thp_fault_alloc"],
			ThpCollapseAlloc:      mem["thp_collapse_alloc"],
			Usage:                 s.Memory.Usage,
			UsageLimit:            s.Memory.Limit,
			MaxUsage:              s.Memory.Max,
			SwapUsage:             s.Swap.Usage,
			SwapLimit:             s.Swap.Limit,
			SwapMaxUsage:          s.Swap.Max,
		},
		MemoryEvents: &cgroup2.MemoryEvents{
			Low:          s.OOM["low"],
			High:         s.OOM["high"],
			Max:          s.OOM["max"],
			Oom:          s.OOM["oom"],
			OomKill:      s.OOM["oom_kill"],
			OomGroupKill: s.OOM["oom_group_kill"],
		},
		Io: &cgroup2.IOStat{},
	}
	for _, e := range s.IO {
		m.Io.Usage = append(m.Io.Usage, &cgroup2.IOEntry{
			Major: e.Major, Minor: e.Minor,
			Rbytes: e.ReadBytes, Wbytes: e.WriteBytes,
			Rios: e.ReadOps, Wios: e.WriteOps,
		})
	}
	return m
}

func metrics1(s runner.Stats) *cgroup1.Metrics {
	mem := s.MemoryStat
	m := &cgroup1.Metrics{
		Pids: &cgroup1.PidsStat{Current: s.Pids, Limit: noLimit(s.PidsMax)},
		CPU: &cgroup1.CPUStat{
			Usage: &cgroup1.CPUUsage{
				Total:  uint64(s.CPU),
				User:   uint64(s.CPUUser),
				Kernel: uint64(s.CPUSystem),
				PerCPU: s.CPUs,
			},
			Throttling: &cgroup1.Throttle{
				Periods:          s.CPUStat["nr_periods"],
				ThrottledPeriods: s.CPUStat["nr_throttled"],
				ThrottledTime:    s.CPUStat["throttled_time"],
			},
		},
		Memory: &cgroup1.MemoryStat{
			Cache:                   mem["cache"],
			RSS:                     mem["rss"],
			RSSHuge:                 mem["rss_huge"],
			MappedFile:              mem["mapped_file"],
			Dirty:                   mem["dirty"],
			Writeback:               mem["writeback"],
			PgPgIn:                  mem["pgpgin"],
			PgPgOut:                 mem["pgpgout"],
			PgFault:                 mem["pgfault"],
			PgMajFault:              mem["pgmajfault"],
			InactiveAnon:            mem["inactive_anon"],
			ActiveAnon:              mem["active_anon"],
			InactiveFile:            mem["inactive_file"],
			ActiveFile:              mem["active_file"],
			Unevictable:             mem["unevictable"],
			HierarchicalMemoryLimit: mem["hierarchical_memory_limit"],
			HierarchicalSwapLimit:   mem["hierarchical_memsw_limit"],
			TotalCache:              mem["total_cache"],
			TotalRSS:                mem["total_rss"],
			TotalRSSHuge:            mem["total_rss_huge"],
			TotalMappedFile:         mem["total_mapped_file"],
			TotalDirty:              mem["total_dirty"],
			TotalWriteback:          mem["total_writeback"],
			TotalPgPgIn:             mem["total_pgpgin"],
			TotalPgPgOut:            mem["total_pgpgout"],
			TotalPgFault:            mem["total_pgfault"],
			TotalPgMajFault:         mem["total_pgmajfault"],
			TotalInactiveAnon:       mem["total_inactive_anon"],
			TotalActiveAnon:         mem["total_active_anon"],
			TotalInactiveFile:       mem["total_inactive_file"],
			TotalActiveFile:         mem["total_active_file"],
			TotalUnevictable:        mem["total_unevictable"],
			Usage:                   memoryEntry(s.Memory),
			Swap:                    memoryEntry(s.Swap),
			Kernel:                  memoryEntry(s.Kernel),
			KernelTCP:               memoryEntry(s.KernelTCP),
		},
		MemoryOomControl: &cgroup1.MemoryOomControl{
			OomKillDisable: s.OOM["oom_kill_disable"],
			UnderOom:       s.OOM["under_oom"],
			OomKill:        s.OOM["oom_kill"],
		},
		Blkio: &cgroup1.BlkIOStat{},
	}
	for _, e := range s.IO {
		entry := func(op string, n uint64) *cgroup1.BlkIOEntry {
			return &cgroup1.BlkIOEntry{Op: op, Major: e.Major, Minor: e.Minor, Value: n}
		}
		m.Blkio.IoServiceBytesRecursive = append(m.Blkio.IoServiceBytesRecursive, entry("Read", e.ReadBytes), entry("Write", e.WriteBytes))
		m.Blkio.IoServicedRecursive = append(m.Blkio.IoServicedRecursive, entry("Read", e.ReadOps), entry("Write", e.WriteOps))
	}
	return m
}

// noLimit is 0 for cgroup v1, where containerd says so of "max".
func noLimit(n uint64) uint64 {
	if n == 1<<64-1 {
		return 0
	}
	return n
}

func memoryEntry(u runner.MemoryUse) *cgroup1.MemoryEntry {
	return &cgroup1.MemoryEntry{Usage: u.Usage, Max: u.Max, Limit: u.Limit, Failcnt: u.Fails}
}
