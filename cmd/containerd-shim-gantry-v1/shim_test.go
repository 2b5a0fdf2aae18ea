package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskpb "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestShim drives the real executable, with the real runc, as a daemon does.
func TestShim(t *testing.T) {
	programs := build(t)
	for _, p := range []struct {
		name  string
		check func(*node)
	}{
		{"run tells output, exit and events in order", runTells},
		{"both streams arrive where they are wanted", bothStreams},
		{"twenty runs one after the other leave nothing", twentyRuns},
		{"wait is true for the long dead until deleted", waitForDead},
		{"standard input ends when it is closed", standardInput},
		{"an output file is appended to", outputFile},
		{"a logging program is not implemented", loggingProgram},
		{"a reader that comes after the end has everything", lateReader},
		{"a terminal has a size and carries both ways", terminal},
		{"exec tells output, exit and events in order", execTells},
		{"exec refuses what is taken, malformed or too early", execRefuses},
		{"exec of a missing program is an error and stops it", execMissing},
		{"a container sees its three streams and nothing of ours", seesThreeStreams},
		{"fifty execs leave no descriptor in the shim", execsLeaveNothing},
		{"heirs do not hold the reader and are not killed", heirs},
		{"kill reaches one process or all", kills},
		{"kill of what has ended is not found", killEnded},
		{"delete of what runs is refused", deleteRunning},
		{"delete of what has not started kills it", deleteCreated},
		{"delete again has the same answer", deleteAgain},
		{"start of what has ended is refused", startDead},
		{"a runtime of another name and one with hooks are started by themselves", startByRuntime},
		{"a missing program fails create and leaves nothing", missingProgram},
		{"a missing runc is named, with what to do", missingRunc},
		{"create refuses what it cannot do and can be tried again", createRefuses},
		{"two creates of one id: one wins", twoCreates},
		{"a client that goes away ends its create", abandonedCreate},
		{"events wait for whoever takes them", eventsWait},
		{"the exit is recorded before it is told", exitRecorded},
		{"memory that ran out is told before the exit", outOfMemory},
		{"a shared PID namespace ends with its first process", sharedPIDs},
		{"orphans are reaped", orphans},
		{"pause, resume, update, pids and stats", controls},
		{"more layers than fit into a page are mounted", manyLayers},
		{"a mount inside the root file system stays inside", mountInside},
		{"both names of the service answer", bothNames},
		{"shutdown does nothing while there is a task", shutdownWithTask},
		{"SIGTERM waits for the processes", sigterm},
		{"the shim lives on when its daemon's log and streams go", daemonGone},
		{"start answers in the form of who asks", startForms},
		{"the socket is ours alone, and replaced when dead", socketOwned},
		{"delete of a killed shim removes everything, twice", deleteAction},
		{"delete kills no other process", deleteKillsNoOther},
		{"info tells version and features", infoTells},
		{"a shim with a running task has little memory of its own", littleMemory},
	} {
		t.Run(p.name, func(t *testing.T) { p.check(newNode(t, programs)) })
	}
}

func runTells(n *node) {
	k := n.task("a", "echo", "hello", "world").serve()
	out := n.fifo("out")
	text := n.read(out)
	pid := k.mustCreate(streams{stdout: out})
	if st := k.state(""); st.Status != tasktypes.Status_CREATED || st.Pid != pid || st.Bundle != k.bundle || st.Stdout != out {
		n.Errorf("state is %v, want created", st)
	}
	if got := k.mustStart(""); got != pid {
		n.Errorf("start says pid %d, create said %d", got, pid)
	}
	if got := k.mustWait(""); got != 0 {
		n.Errorf("exit status is %d, want 0", got)
	}
	if got, want := text(), "hello world\n"; got != want {
		n.Errorf("output is %q, want %q", got, want)
	}
	if r := k.mustDelete(""); r.Pid != pid || r.ExitStatus != 0 || r.ExitedAt == nil {
		n.Errorf("delete says %v, want pid %d", r, pid)
	}
	k.shutdown()
	n.events.want(n, "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
	var last time.Time
	for _, e := range n.events.all {
		if !e.Timestamp.AsTime().After(last) || e.Namespace != namespace {
			n.Errorf("event %s of %s at %v, after %v", e.Topic, e.Namespace, e.Timestamp.AsTime(), last)
		}
		last = e.Timestamp.AsTime()
	}
}

func bothStreams(n *node) {
	k := n.task("a", "both").serve()
	out, errs := n.fifo("out"), n.fifo("err")
	outText, errText := n.read(out), n.read(errs)
	k.mustCreate(streams{stdout: out, stderr: errs})
	k.mustStart("")
	if got := outText() + errText(); got != "out\nerr\n" {
		n.Errorf("streams are %q", got)
	}
	k.end()
}

func twentyRuns(n *node) {
	for i := range 20 {
		k := n.task("t"+strconv.Itoa(i), "exit", strconv.Itoa(i)).serve()
		k.mustCreate(streams{})
		k.mustStart("")
		if got := k.mustWait(""); got != uint32(i) {
			n.Errorf("run %d ended with %d", i, got)
		}
		k.mustDelete("")
		k.shutdown()
	}
	eventually(n, "80 events", func() bool { return len(n.events.seen()) == 80 })
}

func waitForDead(n *node) {
	k := n.task("a", "exit", "7").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	for range 3 {
		if got := k.mustWait(""); got != 7 {
			n.Errorf("exit status is %d, want 7", got)
		}
	}
	if st := k.state(""); st.Status != tasktypes.Status_STOPPED || st.ExitStatus != 7 || st.ExitedAt == nil {
		n.Errorf("state is %v, want stopped with 7", st)
	}
	k.mustDelete("")
	_, err := k.shim.Wait(k.ctx(), &taskpb.WaitRequest{ID: k.id})
	wantKind(n, "wait after delete", native(err), errdefs.ErrNotFound)
	k.shutdown()
}

func standardInput(n *node) {
	k := n.task("a", "cat").serve()
	in, out := n.fifo("in"), n.fifo("out")
	text := n.read(out)
	k.mustCreate(streams{stdin: in, stdout: out})
	k.mustStart("")
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		n.Fatal(err)
	}
	io.WriteString(w, "one ")
	w.Close() // a client that goes may come again
	if w, err = os.OpenFile(in, os.O_WRONLY, 0); err != nil {
		n.Fatal(err)
	}
	if _, err := k.shim.CloseIO(k.ctx(), &taskpb.CloseIORequest{ID: k.id, Stdin: true}); err != nil {
		n.Errorf("close: %v", err)
	}
	io.WriteString(w, "two")
	w.Close()
	if got := text(); got != "one two" {
		n.Errorf("output is %q, want %q", got, "one two")
	}
	k.end()
}

func outputFile(n *node) {
	file := filepath.Join(n.dir, "logs", "out")
	for i := range 2 {
		k := n.task("a"+strconv.Itoa(i), "both").serve()
		k.mustCreate(streams{stdout: "file://" + file, stderr: "file://" + file})
		k.mustStart("")
		k.mustWait("")
		k.end()
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.Count(string(b), "out\n") != 2 || strings.Count(string(b), "err\n") != 2 {
		n.Errorf("the file says %q, %v", b, err)
	}
}

func loggingProgram(n *node) {
	k := n.task("a", "exit", "0").serve()
	_, err := k.create(streams{stdout: "binary:///bin/cat?a=b"})
	wantKind(n, "create", err, errdefs.ErrNotImplemented)
	k.shutdown()
}

func lateReader(n *node) {
	k := n.task("a", "echo", "hello").serve()
	out := n.fifo("out")
	k.mustCreate(streams{stdout: out})
	k.mustStart("")
	k.mustWait("")
	if got := n.read(out)(); got != "hello\n" {
		n.Errorf("output is %q", got)
	}
	k.end()

	// Nobody who does not come is waited for.
	k = n.task("b", "echo", "hello").serve()
	k.mustCreate(streams{stdout: n.fifo("out-b")})
	k.mustStart("")
	k.mustWait("")
	began := time.Now()
	k.mustDelete("")
	if took := time.Since(began); took > 5*time.Second {
		n.Errorf("delete took %v", took)
	}
	k.shutdown()
}

func terminal(n *node) {
	k := n.task("a", "tty")
	k.spec.Process.Terminal = true
	k.spec.Mounts = append(k.spec.Mounts,
		specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
	k.serve()
	in, out := n.fifo("in"), n.fifo("out")
	text := n.read(out)
	k.mustCreate(streams{stdin: in, stdout: out, terminal: true})
	k.resize("", 120, 40)
	k.mustStart("")
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		n.Fatal(err)
	}
	defer w.Close()
	// An exec's terminal may be sized before it is there.
	if err := k.exec("e", streams{stdin: in, stdout: out, terminal: true}, "tty"); err != nil {
		n.Fatal(err)
	}
	io.WriteString(w, "typed\n")
	if got := k.mustWait(""); got != 0 {
		n.Errorf("exit status is %d, want 0", got)
	}
	k.mustDelete("")
	if got := text(); !strings.Contains(got, "terminal 120x40\r\n") || !strings.Contains(got, `read "typed"`) {
		n.Errorf("the terminal showed %q", got)
	}
	k.shutdown()
}

func execTells(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	out := n.fifo("out")
	text := n.read(out)
	if err := k.exec("e", streams{stdout: out}, "echo", "from", "exec"); err != nil {
		n.Fatal(err)
	}
	pid := k.mustStart("e")
	if got := k.mustWait("e"); got != 0 {
		n.Errorf("exit status is %d, want 0", got)
	}
	if got := text(); got != "from exec\n" {
		n.Errorf("output is %q", got)
	}
	if st := k.state("e"); st.Pid != pid || st.Status != tasktypes.Status_STOPPED {
		n.Errorf("state is %v", st)
	}
	if r := k.mustDelete("e"); r.Pid != pid {
		n.Errorf("delete says %v, want pid %d", r, pid)
	}
	_, err := k.shim.Delete(k.ctx(), &taskpb.DeleteRequest{ID: k.id, ExecID: "e"})
	wantKind(n, "delete again", native(err), errdefs.ErrNotFound)
	// One whose end nobody awaits ends before the first process does.
	if err := k.exec("f", streams{}, "sleep", "1000"); err != nil {
		n.Fatal(err)
	}
	k.mustStart("f")
	if err := k.kill("", syscall.SIGKILL, false); err != nil {
		n.Error(err)
	}
	if got := k.mustWait(""); got != 137 {
		n.Errorf("exit status is %d, want 137", got)
	}
	k.mustDelete("")
	k.shutdown()
	n.events.want(n, "/tasks/create", "/tasks/start",
		"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
		"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
		"/tasks/exit", "/tasks/delete")
}

func execRefuses(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	wantKind(n, "exec before start", k.exec("e", streams{}, "exit"), errdefs.ErrFailedPrecondition)
	k.mustStart("")
	if err := k.exec("e", streams{}, "exit"); err != nil {
		n.Error(err)
	}
	wantKind(n, "exec of a taken id", k.exec("e", streams{}, "exit"), errdefs.ErrAlreadyExists)
	wantKind(n, "exec of a bad id", k.exec("../e", streams{}, "exit"), errdefs.ErrInvalidArgument)
	_, err := k.shim.Exec(k.ctx(), &taskpb.ExecProcessRequest{ID: k.id, ExecID: "g", Spec: &anypb.Any{Value: []byte("no JSON")}})
	wantKind(n, "exec of no JSON", native(err), errdefs.ErrInvalidArgument)
	_, err = k.shim.Start(k.ctx(), &taskpb.StartRequest{ID: k.id, ExecID: "nobody"})
	wantKind(n, "start of an exec that is not there", native(err), errdefs.ErrNotFound)
	k.mustStart("e")
	_, err = k.shim.Start(k.ctx(), &taskpb.StartRequest{ID: k.id, ExecID: "e"})
	wantKind(n, "start again", native(err), errdefs.ErrFailedPrecondition)
	k.end()
}

func execMissing(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	p, _ := json.Marshal(specs.Process{Args: []string{"/nope"}, Cwd: "/"})
	if _, err := k.shim.Exec(k.ctx(), &taskpb.ExecProcessRequest{ID: k.id, ExecID: "e", Spec: &anypb.Any{Value: p}}); err != nil {
		n.Fatal(err)
	}
	_, err := k.shim.Start(k.ctx(), &taskpb.StartRequest{ID: k.id, ExecID: "e"})
	wantKind(n, "start", native(err), errdefs.ErrInvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "/nope") {
		n.Errorf("the error is %v and does not name the program", err)
	}
	if st := k.state("e"); st.Status != tasktypes.Status_STOPPED {
		n.Errorf("state is %v, want stopped", st)
	}
	if got := k.mustWait("e"); got == 0 {
		n.Error("a program that was not run ended well")
	}
	k.mustDelete("e")
	k.end()
	n.events.want(n, "/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exit", "/tasks/delete")
}

func seesThreeStreams(n *node) {
	k := n.task("a", "fds").serve()
	out := n.fifo("out")
	text := n.read(out)
	k.mustCreate(streams{stdout: out, stderr: n.fifo("err")})
	k.mustStart("")
	k.mustWait("")
	if got, want := text(), "0=/dev/null 1=pipe 2=pipe\n"; got != want {
		n.Errorf("the container has %q, want %q", got, want)
	}
	k.mustDelete("")
	k.shutdown()

	k = n.task("b", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	out = n.fifo("out2")
	text = n.read(out)
	if err := k.exec("e", streams{stdout: out}, "fds"); err != nil {
		n.Fatal(err)
	}
	k.mustStart("e")
	if got, want := text(), "0=/dev/null 1=pipe 2=/dev/null\n"; got != want {
		n.Errorf("the exec has %q, want %q", got, want)
	}
	n.wantCloseOnExec(k.cmd.Process.Pid)
	k.end()
}

// wantCloseOnExec fails if a process has a descriptor, beside its standard
// streams, that its children would get.
func (n *node) wantCloseOnExec(pid int) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		n.Fatal(err)
	}
	for _, f := range names {
		fd, _ := strconv.Atoi(f.Name())
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if fd <= 2 || err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), "flags:")
		flags, err := strconv.ParseUint(strings.Fields(rest)[0], 8, 64)
		if err != nil || flags&unix.O_CLOEXEC == 0 {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
			n.Errorf("descriptor %d of the shim (%s) is not close-on-exec: flags %o, %v", fd, to, flags, err)
		}
	}
}

func execsLeaveNothing(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	one := func(i int) {
		id := "e" + strconv.Itoa(i)
		in, out := n.fifo("in-"+id), n.fifo("out-"+id)
		// Every other one has a reader, and no one has a writer.
		text := func() string { return "" }
		if i%2 == 0 {
			text = n.read(out)
		}
		if err := k.exec(id, streams{stdin: in, stdout: out, stderr: out}, "both"); err != nil {
			n.Fatal(err)
		}
		k.mustStart(id)
		k.mustWait(id)
		text()
		k.mustDelete(id)
		os.Remove(in)
		os.Remove(out)
	}
	one(0)
	before := k.fdCount()
	for i := range 50 {
		one(i + 1)
	}
	if after := k.fdCount(); after > before {
		n.Errorf("%d descriptors before fifty execs, %d after", before, after)
		out, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", k.cmd.Process.Pid)).Output()
		n.Logf("%s", out)
	}
	if left, _ := os.ReadDir(filepath.Join(k.bundle, "exec")); len(left) > 0 {
		n.Errorf("left in the bundle: %v", left)
	}
	k.end()
}

func heirs(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	out := n.fifo("out")
	text := n.read(out)
	if err := k.exec("e", streams{stdout: out}, "heir", "1000"); err != nil {
		n.Fatal(err)
	}
	k.mustStart("e")
	k.mustWait("e")
	if got := text(); !strings.HasPrefix(got, "left ") {
		n.Errorf("output is %q", got)
	}
	pids := k.pids()
	if len(pids) != 2 {
		n.Errorf("processes are %v, want the first and the heir", pids)
	}
	k.mustDelete("e")
	if got := k.pids(); !slices.Equal(got, pids) {
		n.Errorf("processes are %v after delete of the exec, were %v", got, pids)
	}
	k.end()
}

func kills(n *node) {
	k := n.task("a", "trap", "5").serve()
	out := n.fifo("out")
	text := n.read(out)
	k.mustCreate(streams{stdout: out})
	k.mustStart("")
	if err := k.exec("e", streams{}, "sleep", "1000"); err != nil {
		n.Fatal(err)
	}
	wantKind(n, "kill of an exec that has not started", k.kill("e", syscall.SIGKILL, false), errdefs.ErrFailedPrecondition)
	k.mustStart("e")
	wantKind(n, "kill with a signal that is none", k.kill("", 65, false), errdefs.ErrInvalidArgument)
	if err := k.kill("e", syscall.SIGKILL, false); err != nil {
		n.Error(err)
	}
	if got := k.mustWait("e"); got != 137 {
		n.Errorf("exec's exit status is %d, want 137", got)
	}
	// Signals before its handler is there would be lost: it is the first of
	// its PID namespace.
	eventually(n, "the exit after SIGTERM", func() bool {
		err := k.kill("", syscall.SIGTERM, false)
		return errdefs.IsNotFound(err)
	})
	if got := k.mustWait(""); got != 5 {
		n.Errorf("exit status is %d, want 5", got)
	}
	text()
	k.mustDelete("")
	k.shutdown()

	k = n.task("b", "family", "20").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	eventually(n, "a family of 21", func() bool { return len(k.pids()) == 21 })
	if err := k.kill("", syscall.SIGKILL, true); err != nil {
		n.Error(err)
	}
	if got := k.mustWait(""); got != 137 {
		n.Errorf("exit status is %d, want 137", got)
	}
	k.mustDelete("")
	k.shutdown()
}

func killEnded(n *node) {
	k := n.task("a", "exit", "0").serve()
	wantKind(n, "kill of no task", k.kill("", syscall.SIGKILL, false), errdefs.ErrNotFound)
	k.mustCreate(streams{})
	k.mustStart("")
	k.mustWait("")
	wantKind(n, "kill", k.kill("", syscall.SIGKILL, false), errdefs.ErrNotFound)
	wantKind(n, "kill of all", k.kill("", syscall.SIGKILL, true), errdefs.ErrNotFound)
	k.end()
}

func deleteRunning(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	_, err := k.shim.Delete(k.ctx(), &taskpb.DeleteRequest{ID: k.id})
	wantKind(n, "delete", native(err), errdefs.ErrFailedPrecondition)
	if st := k.state(""); st.Status != tasktypes.Status_RUNNING {
		n.Errorf("state is %v, want running", st)
	}
	k.end()
}

func deleteCreated(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	if r := k.mustDelete(""); r.ExitStatus != 137 {
		n.Errorf("delete says %v, want 137", r)
	}
	k.shutdown()
	n.events.want(n, "/tasks/create", "/tasks/exit", "/tasks/delete")
}

func deleteAgain(n *node) {
	k := n.task("a", "exit", "3").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	k.mustWait("")
	first := k.mustDelete("")
	if second := k.mustDelete(""); !proto.Equal(first, second) {
		n.Errorf("delete says %v, then %v", first, second)
	}
	k.shutdown()
	n.events.want(n, "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
}

func startDead(n *node) {
	k := n.task("a", "exit", "0").serve()
	k.mustCreate(streams{})
	if err := k.kill("", syscall.SIGKILL, false); err != nil {
		n.Error(err)
	}
	if _, err := k.shim.Start(k.ctx(), &taskpb.StartRequest{ID: k.id}); err == nil {
		n.Error("a dead process was started")
	}
	if got := k.mustWait(""); got != 137 {
		n.Errorf("exit status is %d, want 137", got)
	}
	_, err := k.shim.Start(k.ctx(), &taskpb.StartRequest{ID: k.id})
	wantKind(n, "start", native(err), errdefs.ErrFailedPrecondition)
	k.mustDelete("")
	k.shutdown()
	n.events.want(n, "/tasks/create", "/tasks/exit", "/tasks/delete")
}

func startByRuntime(n *node) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		n.Fatal(err)
	}
	other := filepath.Join(n.dir, "other-oci")
	if err := os.Symlink(runc, other); err != nil {
		n.Fatal(err)
	}
	for _, hooks := range []bool{false, true} {
		k := n.task("a"+strconv.FormatBool(hooks), "exit", "5")
		hooked := filepath.Join(n.dir, "hooked")
		if hooks {
			k.spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "touch " + hooked}}}}
		} else {
			k.options.BinaryName = other
		}
		k.serve()
		k.mustCreate(streams{})
		k.mustStart("")
		if got := k.mustWait(""); got != 5 {
			n.Errorf("exit status is %d, want 5", got)
		}
		if _, err := os.Stat(hooked); (err == nil) != hooks {
			n.Errorf("the hook: %v", err)
		}
		k.end()
	}
}

func missingProgram(n *node) {
	k := n.task("a")
	k.spec.Process.Args = []string{"/nope"}
	k.serve()
	_, err := k.create(streams{stdin: n.fifo("in"), stdout: n.fifo("out")})
	wantKind(n, "create", err, errdefs.ErrInvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "OCI runtime create failed") || !strings.Contains(err.Error(), "/nope") {
		n.Errorf("the error is %v", err)
	}
	n.wantNothingMounted(k)
	_, err = k.shim.State(k.ctx(), &taskpb.StateRequest{ID: k.id})
	wantKind(n, "state", native(err), errdefs.ErrNotFound)
	k.shutdown()
	if got := n.events.seen(); len(got) > 0 {
		n.Errorf("events of a create that failed: %v", got)
	}
}

func (n *node) wantNothingMounted(k *testTask) {
	n.Helper()
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), k.bundle) {
		n.Error("the root file system is mounted still")
	}
}

func missingRunc(n *node) {
	k := n.task("a", "exit", "0")
	k.options.BinaryName = "no-such-runc"
	k.serve()
	_, err := k.create(streams{})
	wantKind(n, "create", err, errdefs.ErrInvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "no-such-runc") || !strings.Contains(err.Error(), "install runc") {
		n.Errorf("the error is %v", err)
	}
	n.wantNothingMounted(k)
	k.shutdown()
}

func createRefuses(n *node) {
	k := n.task("a", "exit", "0").serve()
	_, err := k.shim.Create(k.ctx(), &taskpb.CreateTaskRequest{ID: "../a", Bundle: k.bundle})
	wantKind(n, "a bad id", native(err), errdefs.ErrInvalidArgument)
	_, err = k.shim.Create(k.ctx(), &taskpb.CreateTaskRequest{ID: "a", Bundle: "bundle"})
	wantKind(n, "a relative bundle", native(err), errdefs.ErrInvalidArgument)
	_, err = k.shim.Create(k.ctx(), &taskpb.CreateTaskRequest{ID: "a", Bundle: k.bundle, Checkpoint: "/x"})
	wantKind(n, "a checkpoint", native(err), errdefs.ErrNotImplemented)
	_, err = k.shim.Create(k.ctx(), &taskpb.CreateTaskRequest{ID: "a", Bundle: k.bundle, Options: &anypb.Any{TypeUrl: "some.Options"}})
	wantKind(n, "foreign options", native(err), errdefs.ErrInvalidArgument)
	_, err = k.create(streams{stdout: filepath.Join(n.dir, "absent")})
	wantKind(n, "an absent FIFO", err, errdefs.ErrInvalidArgument)
	plain := filepath.Join(n.dir, "plain")
	os.WriteFile(plain, nil, 0o600)
	_, err = k.create(streams{stdin: plain})
	wantKind(n, "a FIFO that is none", err, errdefs.ErrInvalidArgument)
	n.wantNothingMounted(k)
	k.mustCreate(streams{})
	_, err = k.create(streams{})
	wantKind(n, "create again", err, errdefs.ErrAlreadyExists)
	_, err = k.shim.Checkpoint(k.ctx(), &taskpb.CheckpointTaskRequest{ID: k.id})
	wantKind(n, "checkpoint", native(err), errdefs.ErrNotImplemented)
	k.end()
}

func twoCreates(n *node) {
	k := n.task("a", "exit", "0").serve()
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := k.create(streams{})
			errs <- err
		}()
	}
	a, b := <-errs, <-errs
	if a == nil {
		a, b = b, a
	}
	if b != nil {
		n.Errorf("both failed: %v, %v", a, b)
	}
	wantKind(n, "the other create", a, errdefs.ErrAlreadyExists)
	k.end()
}

func abandonedCreate(n *node) {
	// A runtime that takes its time stands in for runc.
	slow := filepath.Join(n.dir, "slow-runc")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\ncase \"$*\" in *create*) touch "+n.dir+"/began; exec sleep 1000;; esac\n"), 0o700); err != nil {
		n.Fatal(err)
	}
	k := n.task("a", "exit", "0")
	k.options.BinaryName = slow
	k.serve()
	conn, err := net.Dial("unix", k.conn.RemoteAddr().String())
	if err != nil {
		n.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := taskpb.NewTTRPCTaskClient(ttrpc.NewClient(conn)).Create(k.ctx(), &taskpb.CreateTaskRequest{ID: k.id, Bundle: k.bundle, Rootfs: k.rootfs})
		done <- err
	}()
	eventually(n, "create begins", func() bool {
		_, err := os.Stat(filepath.Join(n.dir, "began"))
		return err == nil
	})
	conn.Close()
	<-done
	eventually(n, "the root file system is unmounted", func() bool {
		b, _ := os.ReadFile("/proc/self/mountinfo")
		return !strings.Contains(string(b), k.bundle)
	})
	eventually(n, "nothing runs", func() bool { return !runs(slow) })
	eventually(n, "the shim has no task and ends", func() bool {
		k.shim.Shutdown(k.ctx(), &taskpb.ShutdownRequest{ID: k.id})
		select {
		case <-k.dead:
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
}

func eventsWait(n *node) {
	n.events.srv.Close()
	os.Remove(n.address + ".ttrpc")
	k := n.task("a", "exit", "4").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	k.mustWait("")
	b, err := os.ReadFile(filepath.Join(k.bundle, "events.json"))
	if err != nil || strings.Count(string(b), "\n") != 3 {
		n.Errorf("the bundle keeps %q, %v; want three events", b, err)
	}
	n.events.listen(n, n.address+".ttrpc")
	k.mustDelete("")
	k.shutdown()
	n.events.want(n, "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
	if st, err := os.Stat(filepath.Join(k.bundle, "events.json")); err != nil || st.Size() != 0 {
		n.Errorf("events are kept that were taken: %v, %v", st, err)
	}
}

func exitRecorded(n *node) {
	k := n.task("a", "exit", "6").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	k.mustWait("")
	var e struct {
		ContainerID string `json:"container_id"`
		Status      int    `json:"exit_status"`
	}
	b, err := os.ReadFile(filepath.Join(k.bundle, "exit.json"))
	if err != nil || json.Unmarshal(b, &e) != nil || e.Status != 6 || e.ContainerID != "a" {
		n.Errorf("the record is %q, %v", b, err)
	}
	k.end()
}

func outOfMemory(n *node) {
	k := n.task("a", "eat", "200")
	limit := int64(32 << 20)
	k.spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	k.serve()
	k.mustCreate(streams{})
	k.mustStart("")
	if got := k.mustWait(""); got != 137 {
		n.Errorf("exit status is %d, want 137", got)
	}
	k.end()
	n.events.want(n, "/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete")
	if b, _ := os.ReadFile(filepath.Join(k.bundle, "exit.json")); !strings.Contains(string(b), `"out_of_memory":true`) {
		n.Errorf("the record is %s", b)
	}
}

// hostPIDs takes the container's PID namespace away.
func (k *testTask) hostPIDs() *testTask {
	k.spec.Linux.Namespaces = slices.DeleteFunc(k.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace
	})
	k.spec.Mounts = []specs.Mount{{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind"}}}
	return k
}

func sharedPIDs(n *node) {
	k := n.task("a", "family", "5").hostPIDs().serve()
	k.mustCreate(streams{})
	k.mustStart("")
	eventually(n, "a family of six", func() bool { return len(k.pids()) == 6 })
	if err := k.kill("", syscall.SIGKILL, false); err != nil {
		n.Error(err)
	}
	k.mustWait("")
	eventually(n, "nobody lives", func() bool { return len(k.pids()) == 0 })
	k.end()
}

func orphans(n *node) {
	k := n.task("a", "orphans", "10").hostPIDs().serve()
	k.mustCreate(streams{})
	k.mustStart("")
	out := n.fifo("out")
	text := n.read(out)
	if err := k.exec("e", streams{stdout: out}, "orphan"); err != nil {
		n.Fatal(err)
	}
	k.mustStart("e")
	k.mustWait("e")
	text()
	k.mustDelete("e")
	eventually(n, "the shim has one child", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", k.cmd.Process.Pid))
		children := 0
		for _, thread := range threads {
			b, _ := os.ReadFile(thread)
			children += len(strings.Fields(string(b)))
		}
		return children == 1
	})
	k.end()
}

func controls(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	pid := k.mustCreate(streams{})
	k.mustStart("")
	if _, err := k.shim.Resume(k.ctx(), &taskpb.ResumeRequest{ID: k.id}); !errdefs.IsFailedPrecondition(native(err)) {
		n.Errorf("resume of what runs: %v", err)
	}
	if _, err := k.shim.Pause(k.ctx(), &taskpb.PauseRequest{ID: k.id}); err != nil {
		n.Errorf("pause: %v", err)
	}
	if st := k.state(""); st.Status != tasktypes.Status_PAUSED {
		n.Errorf("state is %v, want paused", st)
	}
	if _, err := k.shim.Resume(k.ctx(), &taskpb.ResumeRequest{ID: k.id}); err != nil {
		n.Errorf("resume: %v", err)
	}
	if got := k.pids(); !slices.Equal(got, []uint32{pid}) {
		n.Errorf("pids are %v, want %d", got, pid)
	}
	limit := int64(64 << 20)
	resources, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	if _, err := k.shim.Update(k.ctx(), &taskpb.UpdateTaskRequest{ID: k.id, Resources: &anypb.Any{Value: resources}}); err != nil {
		n.Errorf("update: %v", err)
	}
	r, err := k.shim.Stats(k.ctx(), &taskpb.StatsRequest{ID: k.id})
	if err != nil {
		n.Fatalf("stats: %v", err)
	}
	switch r.Stats.TypeUrl {
	case "io.containerd.cgroups.v1.Metrics":
		var m stats.Metrics
		if err := proto.Unmarshal(r.Stats.Value, &m); err != nil || m.Memory.Usage.Limit != uint64(limit) || m.Memory.Usage.Usage == 0 || m.CPU.Usage.Total == 0 || m.Pids.Current == 0 {
			n.Errorf("stats are %v, %v", &m, err)
		}
	case "io.containerd.cgroups.v2.Metrics":
		var m stats2.Metrics
		if err := proto.Unmarshal(r.Stats.Value, &m); err != nil || m.Memory.UsageLimit != uint64(limit) || m.Memory.Usage == 0 || m.CPU.UsageUsec == 0 || m.Pids.Current == 0 {
			n.Errorf("stats are %v, %v", &m, err)
		}
	default:
		n.Errorf("stats are a %s", r.Stats.TypeUrl)
	}
	// A paused task dies too.
	if _, err := k.shim.Pause(k.ctx(), &taskpb.PauseRequest{ID: k.id}); err != nil {
		n.Errorf("pause: %v", err)
	}
	if err := k.kill("", syscall.SIGKILL, false); err != nil {
		n.Error(err)
	}
	if got := k.mustWait(""); got != 137 {
		n.Errorf("exit status is %d, want 137", got)
	}
	k.end()
	n.events.want(n, "/tasks/create", "/tasks/start", "/tasks/paused", "/tasks/resumed", "/tasks/paused", "/tasks/exit", "/tasks/delete")
}

func manyLayers(n *node) {
	k := n.task("a", "echo", "layers").serve()
	layers := []string{}
	for i := range 120 {
		dir := filepath.Join(n.dir, "layers-with-a-long-name-that-takes-room", strconv.Itoa(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			n.Fatal(err)
		}
		layers = append(layers, dir)
	}
	// The last one has the files.
	if out, err := exec.Command("cp", "-a", filepath.Join(n.programs, "rootfs")+"/.", layers[119]).CombinedOutput(); err != nil {
		n.Fatalf("%v: %s", err, out)
	}
	k.rootfs[0].Options[0] = "lowerdir=" + strings.Join(layers, ":")
	out := n.fifo("out")
	text := n.read(out)
	k.mustCreate(streams{stdout: out})
	k.mustStart("")
	if got := text(); got != "layers\n" {
		n.Errorf("output is %q", got)
	}
	k.end()
}

func mountInside(n *node) {
	k := n.task("a", "exit", "0").serve()
	outside := filepath.Join(n.dir, "outside")
	for _, d := range []string{outside, filepath.Join(k.bundle, "upper", "inside")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.Fatal(err)
		}
	}
	if err := os.Symlink("../../../../../.."+outside, filepath.Join(k.bundle, "upper", "link")); err != nil {
		n.Fatal(err)
	}
	k.rootfs = append(k.rootfs, &types.Mount{Type: "tmpfs", Source: "tmpfs", Target: "/inside"})
	k.mustCreate(streams{})
	k.mustDelete("")
	k.rootfs[1].Target = "/link"
	_, err := k.create(streams{})
	if err == nil {
		n.Error("a link led outside")
	}
	n.wantNothingMounted(k)
	k.shutdown()
}

func bothNames(n *node) {
	k := n.task("a", "exit", "0").serve()
	pid := k.mustCreate(streams{})
	for _, service := range []string{"containerd.task.v2.Task", "containerd.task.v3.Task"} {
		var r taskpb.ConnectResponse
		err := ttrpc.NewClient(k.redial()).Call(k.ctx(), service, "Connect", &taskpb.ConnectRequest{ID: k.id}, &r)
		if err != nil || r.TaskPid != pid || r.ShimPid != uint32(k.cmd.Process.Pid) {
			n.Errorf("%s: connect says %v, %v", service, &r, err)
		}
	}
	err := ttrpc.NewClient(k.redial()).Call(k.ctx(), "containerd.runtime.sandbox.v1.Sandbox", "Platform", &taskpb.ConnectRequest{}, &taskpb.ConnectResponse{})
	wantKind(n, "a service that we have not", native(err), errdefs.ErrNotImplemented)
	k.end()
}

func shutdownWithTask(n *node) {
	k := n.task("a", "exit", "0").serve()
	k.mustCreate(streams{})
	if _, err := k.shim.Shutdown(k.ctx(), &taskpb.ShutdownRequest{ID: k.id, Now: true}); err != nil {
		n.Error(err)
	}
	k.mustStart("")
	k.end()
}

func sigterm(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE} {
		if err := k.cmd.Process.Signal(s); err != nil {
			n.Fatal(err)
		}
	}
	if st := k.state(""); st.Status != tasktypes.Status_RUNNING {
		n.Errorf("state is %v, want running", st)
	}
	k.kill("", syscall.SIGKILL, false)
	if got := k.mustWait(""); got != 137 {
		n.Errorf("exit status is %d, want 137", got)
	}
	k.conn.Close()
	<-k.dead
	if r := k.runDelete(); r.ExitStatus != 137 {
		n.Errorf("delete says %v, want 137", r)
	}
}

func daemonGone(n *node) {
	k := n.task("a", "flooded", "1000000")
	log, err := os.OpenFile(filepath.Join(k.bundle, "log"), os.O_RDWR, 0)
	if err != nil {
		n.Fatal(err)
	}
	k.serve()
	out, errs := n.fifo("out"), n.fifo("err")
	errText := n.read(errs)
	reader, err := os.OpenFile(out, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		n.Fatal(err)
	}
	k.mustCreate(streams{stdout: out, stderr: errs})
	k.mustStart("")
	log.Close()
	io.ReadFull(reader, make([]byte, 1000))
	os.Remove(out) // nobody can come any more: the process is not held back
	reader.Close()
	if got := errText(); got != "done\n" {
		n.Errorf("the process wrote %q", got)
	}
	if got := k.mustWait(""); got != 0 {
		n.Errorf("exit status is %d, want 0", got)
	}
	k.end()
}

func startForms(n *node) {
	for i, form := range []string{"bootstrap", "options", "nothing"} {
		k := n.task("a"+strconv.Itoa(i), "exit", "0")
		spec, _ := json.Marshal(k.spec)
		if err := os.WriteFile(filepath.Join(k.bundle, "config.json"), spec, 0o600); err != nil {
			n.Fatal(err)
		}
		cmd := k.command("start")
		switch form {
		case "options":
			o, _ := proto.Marshal(k.options)
			b, _ := proto.Marshal(&anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: o})
			cmd.Stdin = strings.NewReader(string(b))
		case "nothing":
			cmd.Stdin = nil
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			n.Fatalf("start with %s: %v: %s", form, err, out)
		}
		var answer bootstrap.BootstrapResult
		if form == "bootstrap" {
			err = proto.Unmarshal(out, &answer)
		} else {
			err = json.Unmarshal(out, &answer)
		}
		if err != nil || answer.Protocol != "ttrpc" || answer.Version < 2 {
			n.Fatalf("start with %s printed %q: %v", form, out, err)
		}
		k.dial(strings.TrimPrefix(answer.Address, "unix://"))
		r, err := k.shim.Connect(k.ctx(), &taskpb.ConnectRequest{ID: k.id})
		if err != nil {
			n.Fatalf("connect: %v", err)
		}
		_, err = k.shim.Create(k.ctx(), &taskpb.CreateTaskRequest{ID: k.id, Bundle: k.bundle, Rootfs: k.rootfs})
		if err != nil {
			n.Fatalf("create: %v", err)
		}
		if _, err := os.Stat(filepath.Join(n.dir, "chosen", namespace, k.id)); (err == nil) != (form != "nothing") {
			n.Errorf("start with %s: the options did not reach runc: %v", form, err)
		}
		k.mustStart("")
		k.mustWait("")
		k.mustDelete("")
		if _, err := k.shim.Shutdown(k.ctx(), &taskpb.ShutdownRequest{}); err != nil {
			n.Error(err)
		}
		k.conn.Close()
		eventually(n, "the shim has ended", func() bool { return syscall.Kill(int(r.ShimPid), 0) != nil })
	}
}

func socketOwned(n *node) {
	k := n.task("a", "exit", "0").serve()
	path := k.conn.RemoteAddr().String()
	for file, mode := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != mode {
			n.Errorf("%s: %v, %v, want %v", file, st.Mode(), err, mode)
		}
	}
	if out, err := k.command("start").CombinedOutput(); err == nil || !strings.Contains(string(out), "a shim of this id runs") {
		n.Errorf("a second shim of the id: %v: %s", err, out)
	}
	// Another user's process is not answered, even if it gets to the socket.
	os.Chmod(filepath.Dir(path), 0o711)
	os.Chmod(path, 0o666)
	os.Chmod(n.dir, 0o711)
	if err := connectAs(65534, path); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		n.Errorf("another user's connection: %v, want an end", err)
	}
	k.cmd.Process.Kill()
	<-k.dead
	k2 := n.task("b", "exit", "0")
	k2.id, k2.bundle = k.id, k.bundle
	k2.serve()
	k2.mustCreate(streams{})
	k2.end()
	if _, err := os.Stat(path); err == nil {
		n.Error("the socket is left")
	}
}

// connectAs connects as another user and reads.
func connectAs(id int, path string) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, e := unix.RawSyscall(call, uintptr(id), uintptr(id), uintptr(id)); e != 0 {
				result <- e
				return
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			result <- err
			return
		}
		n, err := unix.Read(fd, make([]byte, 1))
		if n == 0 && err == nil {
			err = io.EOF
		}
		result <- err
	}()
	return <-result
}

func deleteAction(n *node) {
	k := n.task("a", "sleep", "1000").serve()
	pid := k.mustCreate(streams{})
	k.mustStart("")
	path := k.conn.RemoteAddr().String()
	k.cmd.Process.Kill()
	<-k.dead
	if syscall.Kill(int(pid), 0) != nil {
		n.Error("the container died with its shim")
	}
	for range 2 {
		if r := k.runDelete(); r.Pid != pid || r.ExitStatus == 0 || r.ExitedAt == nil {
			n.Errorf("delete says %v, want pid %d", r, pid)
		}
	}
	eventually(n, "the first process has ended", func() bool { return syscall.Kill(int(pid), 0) != nil })
	n.wantNothingMounted(k)
	if _, err := os.Stat(path); err == nil {
		n.Error("the socket is left")
	}

	// A frozen container is removed too.
	k = n.task("p", "sleep", "1000").serve()
	pid = k.mustCreate(streams{})
	k.mustStart("")
	if _, err := k.shim.Pause(k.ctx(), &taskpb.PauseRequest{ID: k.id}); err != nil {
		n.Errorf("pause: %v", err)
	}
	k.cmd.Process.Kill()
	<-k.dead
	if r := k.runDelete(); r.Pid != pid || r.ExitStatus != 137 {
		n.Errorf("delete says %v, want 137 of pid %d", r, pid)
	}

	// After a delete there is nothing to do, and the exit is known.
	k = n.task("b", "exit", "9").serve()
	k.mustCreate(streams{})
	k.mustStart("")
	k.mustWait("")
	k.end()
	if r := k.runDelete(); r.ExitStatus != 9 {
		n.Errorf("delete says %v, want 9", r)
	}
	// And before anything was made, too.
	if r := n.task("c", "exit", "0").runDelete(); r.Pid != 0 {
		n.Errorf("delete says %v, want no pid", r)
	}
}

func deleteKillsNoOther(n *node) {
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		n.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	k := n.task("a", "exit", "0")
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	record := fmt.Sprintf(`{"pid":%d,"start":1,"boot":%q}`, other.Process.Pid, strings.TrimSpace(string(boot)))
	if err := os.WriteFile(filepath.Join(k.bundle, "init.json"), []byte(record), 0o600); err != nil {
		n.Fatal(err)
	}
	k.runDelete()
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		n.Error("another process of the number was killed")
	}
}

func infoTells(n *node) {
	o, _ := proto.Marshal(&runcoptions.Options{BinaryName: "runc"})
	in, _ := proto.Marshal(&anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: o})
	cmd := exec.Command(filepath.Join(n.programs, "containerd-shim-gantry-v1"), "-info")
	cmd.Stdin = strings.NewReader(string(in))
	out, err := cmd.Output()
	var info types.RuntimeInfo
	if err != nil || proto.Unmarshal(out, &info) != nil || info.Name == "" || !json.Valid(info.Features.GetValue()) {
		n.Errorf("info is %v, %v", &info, err)
	}
	if out, err := exec.Command(filepath.Join(n.programs, "containerd-shim-gantry-v1"), "-v").Output(); err != nil || !strings.Contains(string(out), "Version:") {
		n.Errorf("version is %q, %v", out, err)
	}
}

// ownMax is what a shim may have that it shares with no other shim.
const ownMax = 4 << 10 // KiB

func littleMemory(n *node) {
	if raceFlags != nil {
		n.Skip("the race detector takes memory of its own")
	}
	k := n.task("a", "sleep", "1000").serve()
	k.mustCreate(streams{stdin: n.fifo("in"), stdout: n.fifo("out"), stderr: n.fifo("err")})
	k.mustStart("")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", k.cmd.Process.Pid))
	if err != nil {
		n.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "Pss_Anon:")
	var own int
	if _, err := fmt.Sscan(rest, &own); err != nil || own > ownMax {
		n.Errorf("the shim has %d KiB of its own, %v, want at most %d", own, err, ownMax)
	}
	k.end()
}

// BenchmarkRun reports what each step of a whole run takes, seen by the daemon.
func BenchmarkRun(b *testing.B) {
	n := newNode(b, build(b))
	steps := map[string]time.Duration{}
	last := time.Now()
	step := func(name string) {
		steps[name] += time.Since(last)
		last = time.Now()
	}
	for b.Loop() {
		k := n.task("b", "exit", "0")
		last = time.Now()
		k.serve()
		step("serve")
		k.mustCreate(streams{})
		step("create")
		k.mustStart("")
		step("start")
		k.mustWait("")
		step("wait")
		k.mustDelete("")
		step("delete")
		k.shutdown()
		step("shutdown")
		removeAll(b, k.bundle)
	}
	for name, d := range steps {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms/op")
	}
}
