package detached

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"github.com/gantryd/gantry/services/idmap"
)

// Users returns a user namespace with those ids, in which nobody is: mounts are
// given one to have its ids.
func Users(m idmap.Map) (*os.File, error) {
	// A process has to be in it while it is made. It is a copy of this one,
	// which the kernel stops before its first instruction, and ends it when
	// this thread does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"ids"}, &os.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: ranges(m.UIDs),
		GidMappings: ranges(m.GIDs),
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	f, err := os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
	// It has done nothing, so there is nothing in how it ends; and somebody
	// else in this process may be waiting for every child.
	_ = p.Kill()
	_, _ = p.Wait()
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	return f, nil
}

func ranges(all []idmap.Range) []syscall.SysProcIDMap {
	maps := make([]syscall.SysProcIDMap, len(all))
	for i, r := range all {
		maps[i] = syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Size)}
	}
	return maps
}
