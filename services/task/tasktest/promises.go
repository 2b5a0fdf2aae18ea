package tasktest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

const (
	sigterm = uint32(syscall.SIGTERM)
	sigkill = uint32(syscall.SIGKILL)
)

var promises = []struct {
	name  string
	check func(*node)
}{
	{"create, start, wait and delete tell the exit status", lifeOfATask},
	{"wait that began before the end tells it", waitBefore},
	{"many waiters are all told", waitMany},
	{"wait ends with its context and the task goes on", waitContext},
	{"wait after the end returns at once, again and again", waitAfter},
	{"create without a container is not found", createMissing},
	{"create with an unknown runtime is an invalid argument and leaves nothing", createBadRuntime},
	{"a container has one task", createTwice},
	{"a missing task is not found by every method", missing},
	{"ids that climb are not found", climbing},
	{"a created task runs nothing and can be killed", createdTask},
	{"start runs a process once", startTwice},
	{"a program that is not there is an error of start", missingProgram},
	{"a running task is not deleted", deleteRunning},
	{"a deleted task's container can have another", deleteThenCreate},
	{"get says what a process is doing", getStatus},
	{"list is the tasks of one namespace in byte order", list},
	{"the tasks of two namespaces do not meet", namespaces},
	{"an exec has a life of its own", lifeOfAnExec},
	{"an exec id is taken once and must be an identifier", execIDs},
	{"exec needs a running task", execNeedsRunning},
	{"a running exec is not deleted", deleteRunningExec},
	{"a missing exec is not found by every method", missingExec},
	{"kill of an exec spares the task", killExec},
	{"kill of what has ended is not found", killEnded},
	{"kill of all ends every process", killAll},
	{"a signal that the program obeys is its exit status", killTerm},
	{"pause and resume are seen", pause},
	{"pids has the first process", listPids},
	{"output reaches a FIFO", output},
	{"input reaches the program until it is closed", input},
	{"metrics are of the tasks that match", metrics},
	{"tasks live side by side", sideBySide},
}

func lifeOfATask(n *node) {
	pid := n.started("c1", "exit", "7")
	waited := n.waited("c1", "")
	if waited.Status != 7 || waited.At.IsZero() || time.Since(waited.At).Abs() > time.Hour {
		n.Errorf("Wait: %+v, want status 7 and now", waited)
	}
	deleted, err := n.Delete(n.Context(), "c1")
	n.must("Delete", err)
	if deleted.Status != 7 || deleted.Pid != pid || !deleted.At.Equal(waited.At) {
		n.Errorf("Delete: %+v, want pid %d and as Wait said: %+v", deleted, pid, waited)
	}
	_, err = n.Get(n.Context(), "c1", "")
	n.wantKind("Get of the deleted", err, errdefs.ErrNotFound)
	_, err = n.Delete(n.Context(), "c1")
	n.wantKind("second Delete", err, errdefs.ErrNotFound)
}

func waitBefore(n *node) {
	n.created("c1", "sleep")
	ended := make(chan task.Exit, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		e, err := n.Wait(n.Context(), "c1", "")
		if err != nil {
			n.Errorf("Wait: %v", err)
		}
		ended <- e
	})
	_, err := n.Start(n.Context(), "c1", "")
	n.must("Start", err)
	select {
	case e := <-ended:
		n.Fatalf("Wait returned %+v of a task that runs", e)
	default:
	}
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	if e := <-ended; e.Status != 137 {
		n.Errorf("Wait: %+v, want status 137", e)
	}
}

func waitMany(n *node) {
	n.started("c1", "sleep")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if e, err := n.Wait(n.Context(), "c1", ""); err != nil || e.Status != 137 {
				n.Errorf("Wait: %+v, %v", e, err)
			}
		})
	}
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	wg.Wait()
}

func waitContext(n *node) {
	n.started("c1", "sleep")
	ctx, cancel := context.WithTimeout(n.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := n.Wait(ctx, "c1", "")
	n.wantKind("Wait", err, context.DeadlineExceeded)
	n.wantStatus("c1", "", task.Running)
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	if e := n.waited("c1", ""); e.Status != 137 {
		n.Errorf("Wait: %+v, want status 137", e)
	}
}

func waitAfter(n *node) {
	n.started("c1", "exit", "3")
	first := n.waited("c1", "")
	for range 3 {
		if e := n.waited("c1", ""); e.Status != 3 || !e.At.Equal(first.At) {
			n.Errorf("Wait: %+v, said %+v before", e, first)
		}
	}
}

func createMissing(n *node) {
	_, err := n.Create(n.Context(), task.CreateRequest{ContainerID: "c1"})
	n.wantKind("Create", err, errdefs.ErrNotFound)
	n.container(two, "c1", "true")
	_, err = n.Create(n.Context(), task.CreateRequest{ContainerID: "c1"})
	n.wantKind("Create of another namespace's", err, errdefs.ErrNotFound)
}

func createBadRuntime(n *node) {
	for i, runtime := range []string{"nothing", "io.containerd.nosuchruntime.v9", "../up", "bin/shim", "/no/such/shim", "io.containerd.../../x.v1", "-x.v1", "a b.v1"} {
		id := fmt.Sprintf("c%d", i)
		n.container(one, id, "true")
		c, err := n.Containers.In(one).Get(n.Context(), id)
		n.must("Get", err)
		n.must("Delete", n.Containers.In(one).Delete(n.Context(), id))
		c.Runtime.Name = runtime
		_, err = n.Containers.In(one).Create(n.Context(), c)
		n.must("Create of the record", err)
		_, err = n.Create(n.Context(), task.CreateRequest{ContainerID: id})
		n.wantKind(fmt.Sprintf("Create with runtime %q", runtime), err, errdefs.ErrInvalidArgument)
		if err != nil && strings.Contains(err.Error(), "\n") {
			n.Errorf("Create with runtime %q: error of several lines: %q", runtime, err)
		}
	}
	all, err := n.List(n.Context())
	if err != nil || len(all) != 0 {
		n.Errorf("List: %v, %v; want nothing", all, err)
	}
}

func createTwice(n *node) {
	n.started("c1", "sleep")
	_, err := n.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs})
	n.wantKind("second Create", err, errdefs.ErrAlreadyExists)
	n.wantStatus("c1", "", task.Running)
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	n.waited("c1", "")
	_, err = n.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs})
	n.wantKind("Create beside a stopped task", err, errdefs.ErrAlreadyExists)
}

// everyMethod calls every method that names a task and tells how each failed.
func everyMethod(n *node, s task.Service, id, exec string) map[string]error {
	ctx := n.Context()
	errs := make(map[string]error)
	_, errs["Get"] = s.Get(ctx, id, exec)
	_, errs["Start"] = s.Start(ctx, id, exec)
	_, errs["Wait"] = s.Wait(ctx, id, exec)
	errs["Kill"] = s.Kill(ctx, id, exec, sigkill, false)
	errs["ResizePty"] = s.ResizePty(ctx, id, exec, 80, 25)
	errs["CloseIO"] = s.CloseIO(ctx, id, exec)
	if exec != "" {
		_, errs["DeleteProcess"] = s.DeleteProcess(ctx, id, exec)
		return errs
	}
	_, errs["Delete"] = s.Delete(ctx, id)
	errs["Exec"] = s.Exec(ctx, task.ExecRequest{ContainerID: id, ExecID: "e", Spec: n.Process("true")})
	errs["Pause"] = s.Pause(ctx, id)
	errs["Resume"] = s.Resume(ctx, id)
	_, errs["Pids"] = s.Pids(ctx, id)
	errs["Update"] = s.Update(ctx, id, typed.Value{}, nil)
	_, errs["Checkpoint"] = s.Checkpoint(ctx, id, nil)
	return errs
}

func missing(n *node) {
	n.container(one, "no-task", "true")
	for _, id := range []string{"no-container", "no-task"} {
		for method, err := range everyMethod(n, n, id, "") {
			n.wantKind(method+" of "+id, err, errdefs.ErrNotFound)
		}
	}
	n.started("c1", "sleep")
	for method, err := range everyMethod(n, n.Tasks.In(two), "c1", "") {
		n.wantKind(method+" in another namespace", err, errdefs.ErrNotFound)
	}
	n.wantStatus("c1", "", task.Running)
}

func climbing(n *node) {
	for _, id := range []string{"", "..", "../../etc", "/", "a/b", ".x"} {
		_, err := n.Create(n.Context(), task.CreateRequest{ContainerID: id})
		n.wantKind(fmt.Sprintf("Create(%q)", id), err, errdefs.ErrNotFound)
		for method, err := range everyMethod(n, n, id, "") {
			n.wantKind(fmt.Sprintf("%s(%q)", method, id), err, errdefs.ErrNotFound)
		}
	}
}

func createdTask(n *node) {
	pid := n.created("c1", "sleep")
	if p := n.wantStatus("c1", "", task.Created); p.Pid != pid || pid == 0 {
		n.Errorf("Get: pid %d, Create said %d", p.Pid, pid)
	}
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	if e := n.waited("c1", ""); e.Status != 137 {
		n.Errorf("Wait: %+v, want status 137", e)
	}
	_, err := n.Delete(n.Context(), "c1")
	n.must("Delete", err)
}

func startTwice(n *node) {
	n.started("c1", "sleep")
	if pid, err := n.Start(n.Context(), "c1", ""); err == nil {
		n.Errorf("second Start: pid %d, want an error", pid)
	}
	n.wantStatus("c1", "", task.Running)
}

// A runtime may find out when it creates or when it starts.
func missingProgram(n *node) {
	n.container(one, "c1", "no-such-program")
	_, err := n.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs})
	if err == nil {
		if _, err = n.Start(n.Context(), "c1", ""); err == nil {
			n.Fatal("Start of a program that is not there: no error")
		}
		n.wantStatus("c1", "", task.Stopped)
		n.waited("c1", "")
		_, err = n.Delete(n.Context(), "c1")
		n.must("Delete", err)
	}
	_, err = n.Get(n.Context(), "c1", "")
	n.wantKind("Get", err, errdefs.ErrNotFound)

	n.started("c2", "sleep")
	n.exec("c2", "e", "no-such-program")
	if _, err := n.Start(n.Context(), "c2", "e"); err == nil {
		n.Fatal("Start of an exec that is not there: no error")
	}
	n.wantStatus("c2", "e", task.Stopped)
	_, err = n.DeleteProcess(n.Context(), "c2", "e")
	n.must("DeleteProcess", err)
	n.wantStatus("c2", "", task.Running)
}

func deleteRunning(n *node) {
	n.started("c1", "sleep")
	_, err := n.Delete(n.Context(), "c1")
	n.wantKind("Delete", err, errdefs.ErrFailedPrecondition)
	n.wantStatus("c1", "", task.Running)
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	n.waited("c1", "")
	_, err = n.Delete(n.Context(), "c1")
	n.must("Delete of the stopped", err)
}

func deleteThenCreate(n *node) {
	n.started("c1", "exit", "1")
	n.waited("c1", "")
	for range 3 {
		_, err := n.Delete(n.Context(), "c1")
		n.must("Delete", err)
		_, err = n.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs})
		n.must("Create", err)
		_, err = n.Start(n.Context(), "c1", "")
		n.must("Start", err)
		if e := n.waited("c1", ""); e.Status != 1 {
			n.Errorf("Wait: %+v, want status 1", e)
		}
	}
}

func getStatus(n *node) {
	pid := n.started("c1", "sleep")
	p := n.wantStatus("c1", "", task.Running)
	if p.ContainerID != "c1" || p.ExecID != "" || p.Pid != pid || p.IO != (task.IO{}) {
		n.Errorf("Get: %+v, want container c1 and pid %d", p, pid)
	}
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	e := n.waited("c1", "")
	p = n.wantStatus("c1", "", task.Stopped)
	if p.Exit.Status != 137 || !p.Exit.At.Equal(e.At) {
		n.Errorf("Get: %+v, want exit %+v", p, e)
	}
}

func list(n *node) {
	for _, id := range []string{"b", "a-1", "a"} {
		n.created(id, "sleep")
	}
	n.container(one, "no-task", "true")
	all, err := n.List(n.Context())
	n.must("List", err)
	var got []string
	for _, p := range all {
		got = append(got, fmt.Sprintf("%s %q %s", p.ContainerID, p.ExecID, p.Status))
	}
	want := `a "" created, a-1 "" created, b "" created`
	if s := strings.Join(got, ", "); s != want {
		n.Errorf("List: %s; want %s", s, want)
	}
	other, err := n.Tasks.In(two).List(n.Context())
	if err != nil || len(other) != 0 {
		n.Errorf("List of another namespace: %v, %v", other, err)
	}
}

func namespaces(n *node) {
	n.started("c1", "sleep")
	n.container(two, "c1", "exit", "5")
	s := n.Tasks.In(two)
	_, err := s.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs})
	n.must("Create", err)
	_, err = s.Start(n.Context(), "c1", "")
	n.must("Start", err)
	e, err := s.Wait(n.Context(), "c1", "")
	if err != nil || e.Status != 5 {
		n.Errorf("Wait: %+v, %v; want status 5", e, err)
	}
	_, err = s.Delete(n.Context(), "c1")
	n.must("Delete", err)
	n.wantStatus("c1", "", task.Running)
}

func lifeOfAnExec(n *node) {
	n.started("c1", "sleep")
	n.exec("c1", "e1", "exit", "9")
	n.wantStatus("c1", "e1", task.Created)
	pid, err := n.Start(n.Context(), "c1", "e1")
	n.must("Start", err)
	if e := n.waited("c1", "e1"); e.Status != 9 {
		n.Errorf("Wait: %+v, want status 9", e)
	}
	p := n.wantStatus("c1", "e1", task.Stopped)
	if p.ContainerID != "c1" || p.ExecID != "e1" {
		n.Errorf("Get: %+v, want exec e1 of c1", p)
	}
	e, err := n.DeleteProcess(n.Context(), "c1", "e1")
	n.must("DeleteProcess", err)
	if e.Status != 9 || e.Pid != pid {
		n.Errorf("DeleteProcess: %+v, want status 9 of pid %d", e, pid)
	}
	_, err = n.Get(n.Context(), "c1", "e1")
	n.wantKind("Get", err, errdefs.ErrNotFound)
	n.wantStatus("c1", "", task.Running)
}

func execIDs(n *node) {
	n.started("c1", "sleep")
	n.exec("c1", "e1", "sleep")
	err := n.Exec(n.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "e1", Spec: n.Process("true")})
	n.wantKind("second Exec", err, errdefs.ErrAlreadyExists)
	n.wantStatus("c1", "e1", task.Created)
	for _, id := range []string{"", "..", "../x", "a/b", "a b", ".x", strings.Repeat("x", 77)} {
		err := n.Exec(n.Context(), task.ExecRequest{ContainerID: "c1", ExecID: id, Spec: n.Process("true")})
		n.wantKind(fmt.Sprintf("Exec(%q)", id), err, errdefs.ErrInvalidArgument)
	}
}

func execNeedsRunning(n *node) {
	n.started("c1", "true")
	n.waited("c1", "")
	err := n.Exec(n.Context(), task.ExecRequest{ContainerID: "c1", ExecID: "e", Spec: n.Process("true")})
	n.wantKind("Exec in a stopped task", err, errdefs.ErrFailedPrecondition)
}

func deleteRunningExec(n *node) {
	n.started("c1", "sleep")
	n.exec("c1", "e", "sleep")
	_, err := n.Start(n.Context(), "c1", "e")
	n.must("Start", err)
	_, err = n.DeleteProcess(n.Context(), "c1", "e")
	n.wantKind("DeleteProcess", err, errdefs.ErrFailedPrecondition)
	n.wantStatus("c1", "e", task.Running)
}

func missingExec(n *node) {
	n.started("c1", "sleep")
	for method, err := range everyMethod(n, n, "c1", "no-exec") {
		n.wantKind(method, err, errdefs.ErrNotFound)
	}
}

func killExec(n *node) {
	n.started("c1", "sleep")
	n.exec("c1", "e", "sleep")
	_, err := n.Start(n.Context(), "c1", "e")
	n.must("Start", err)
	n.must("Kill", n.Kill(n.Context(), "c1", "e", sigkill, false))
	if e := n.waited("c1", "e"); e.Status != 137 {
		n.Errorf("Wait: %+v, want status 137", e)
	}
	n.wantStatus("c1", "", task.Running)
}

func killEnded(n *node) {
	n.started("c1", "sleep")
	n.exec("c1", "e", "true")
	_, err := n.Start(n.Context(), "c1", "e")
	n.must("Start", err)
	n.waited("c1", "e")
	n.wantKind("Kill of the exec", n.Kill(n.Context(), "c1", "e", sigterm, false), errdefs.ErrNotFound)
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, false))
	n.waited("c1", "")
	n.wantKind("Kill of the task", n.Kill(n.Context(), "c1", "", sigkill, false), errdefs.ErrNotFound)
}

func killAll(n *node) {
	n.started("c1", "ignore")
	n.exec("c1", "e", "ignore")
	_, err := n.Start(n.Context(), "c1", "e")
	n.must("Start", err)
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigkill, true))
	if e := n.waited("c1", ""); e.Status != 137 {
		n.Errorf("Wait: %+v, want status 137", e)
	}
	if e := n.waited("c1", "e"); e.Status != 137 {
		n.Errorf("Wait of the exec: %+v, want status 137", e)
	}
}

// A first process is deaf to the signals that it has not said it wants, so that
// it has to say when it listens.
func killTerm(n *node) {
	out, f := fifo(n, "out")
	n.container(one, "c1", "sleep")
	_, err := n.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs, IO: task.IO{Stdout: out}})
	n.must("Create", err)
	_, err = n.Start(n.Context(), "c1", "")
	n.must("Start", err)
	if line, err := bufio.NewReader(f).ReadString('\n'); err != nil || line != "ready\n" {
		n.Errorf("output: %q, %v", line, err)
	}
	n.must("Kill", n.Kill(n.Context(), "c1", "", sigterm, false))
	if e := n.waited("c1", ""); e.Status != 128+sigterm {
		n.Errorf("Wait: %+v, want status %d", e, 128+sigterm)
	}
}

func pause(n *node) {
	n.started("c1", "sleep")
	n.must("Pause", n.Pause(n.Context(), "c1"))
	n.wantStatus("c1", "", task.Paused)
	n.must("Resume", n.Resume(n.Context(), "c1"))
	n.wantStatus("c1", "", task.Running)
}

func listPids(n *node) {
	pid := n.started("c1", "sleep")
	all, err := n.Pids(n.Context(), "c1")
	n.must("Pids", err)
	for _, p := range all {
		if p.Pid == pid {
			return
		}
	}
	n.Errorf("Pids: %v, want %d among them", all, pid)
}

// fifo makes one and opens it so that neither end waits for the other.
func fifo(n *node, name string) (string, *os.File) {
	n.Helper()
	path := filepath.Join(n.TempDir(), name)
	n.must("mkfifo", syscall.Mkfifo(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	n.must("open", err)
	n.Cleanup(func() { f.Close() })
	n.must("deadline", f.SetDeadline(time.Now().Add(patience)))
	return path, f
}

func output(n *node) {
	out, f := fifo(n, "out")
	n.container(one, "c1", "echo", "hello", "world")
	io := task.IO{Stdout: out}
	_, err := n.Create(n.Context(), task.CreateRequest{ContainerID: "c1", Rootfs: n.Rootfs, IO: io})
	n.must("Create", err)
	if p := n.wantStatus("c1", "", task.Created); p.IO != io {
		n.Errorf("Get: streams %+v, want %+v", p.IO, io)
	}
	_, err = n.Start(n.Context(), "c1", "")
	n.must("Start", err)
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil || line != "hello world\n" {
		n.Errorf("output: %q, %v", line, err)
	}
	n.waited("c1", "")
}

func input(n *node) {
	in, w := fifo(n, "in")
	out, r := fifo(n, "out")
	n.started("c1", "sleep")
	err := n.Exec(n.Context(), task.ExecRequest{
		ContainerID: "c1", ExecID: "e", Spec: n.Process("cat"),
		IO: task.IO{Stdin: in, Stdout: out},
	})
	n.must("Exec", err)
	_, err = n.Start(n.Context(), "c1", "e")
	n.must("Start", err)
	_, err = w.WriteString("there and back\n")
	n.must("write", err)
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || line != "there and back\n" {
		n.Errorf("output: %q, %v", line, err)
	}
	n.must("close", w.Close())
	n.must("CloseIO", n.CloseIO(n.Context(), "c1", "e"))
	if e := n.waited("c1", "e"); e.Status != 0 {
		n.Errorf("Wait: %+v, want status 0", e)
	}
}

func metrics(n *node) {
	n.started("a", "sleep")
	n.started("b", "sleep")
	for _, c := range []struct {
		filters []string
		want    string
	}{
		{nil, "a b"},
		{[]string{"id==b"}, "b"},
		{[]string{"namespace==one"}, "a b"},
		{[]string{"namespace==two"}, ""},
	} {
		all, err := n.Metrics(n.Context(), c.filters...)
		if err != nil {
			n.Errorf("Metrics(%q): %v", c.filters, err)
			continue
		}
		var ids []string
		for _, m := range all {
			ids = append(ids, m.ID)
			if m.Data == nil || m.Time.IsZero() {
				n.Errorf("metric of %s: %+v, want data and a time", m.ID, m)
			}
		}
		if got := strings.Join(ids, " "); got != c.want {
			n.Errorf("Metrics(%q): %q, want %q", c.filters, got, c.want)
		}
	}
	_, err := n.Metrics(n.Context(), "id==")
	n.wantKind("Metrics with a bad filter", err, errdefs.ErrInvalidArgument)
	all, err := n.Tasks.In(namespace.Scope{Name: "two"}).Metrics(n.Context())
	if err != nil || len(all) != 0 {
		n.Errorf("Metrics of another namespace: %v, %v", all, err)
	}
}

func sideBySide(n *node) {
	var wg sync.WaitGroup
	for i := range 6 {
		id := fmt.Sprintf("c%d", i)
		n.container(one, id, "exit", fmt.Sprint(i))
		wg.Go(func() {
			if err := n.live(id, uint32(i)); err != nil {
				n.Errorf("%s: %v", id, err)
			}
		})
	}
	wg.Wait()
	all, err := n.List(n.Context())
	if err != nil || len(all) != 0 {
		n.Errorf("List: %v, %v; want nothing", all, err)
	}
}

// live takes a task from its creation to its end.
func (n *node) live(id string, status uint32) error {
	ctx, cancel := context.WithTimeout(n.Context(), patience)
	defer cancel()
	if _, err := n.Create(ctx, task.CreateRequest{ContainerID: id, Rootfs: n.Rootfs}); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := n.Start(ctx, id, ""); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	e, err := n.Wait(ctx, id, "")
	if err != nil || e.Status != status {
		return fmt.Errorf("wait: %+v, %w", e, err)
	}
	if e, err = n.Delete(ctx, id); err != nil || e.Status != status {
		return fmt.Errorf("delete: %+v, %w", e, err)
	}
	return nil
}
