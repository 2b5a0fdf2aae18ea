package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/gantryd/gantry/services/mount"
	"github.com/gantryd/gantry/services/runner"
	"github.com/gantryd/gantry/services/task"
)

func TestConfigReportsEveryMistake(t *testing.T) {
	err := Config{Namespace: "a/b", ID: "", Bundle: "x"}.Check()
	for _, want := range []string{"namespace", "id", "bundle"} {
		if err == nil || !strings.Contains(err.Error(), want+":") {
			t.Errorf("the error is %v and does not name %s", err, want)
		}
	}
	if _, err := Open(Config{}, Needs{Log: quiet()}); err == nil {
		t.Error("a shim for nobody opens")
	}
}

func TestWithoutATaskEverythingIsNotFound(t *testing.T) {
	s, err := Open(Config{Namespace: "n", ID: "a", Bundle: t.TempDir(), RuntimeRoot: "/r"}, Needs{Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	_, err = s.Delete(ctx, "a")
	add(err)
	_, err = s.State(ctx, "a", "")
	add(err)
	_, err = s.Start(ctx, "a", "")
	add(err)
	_, err = s.Wait(ctx, "a", "")
	add(err)
	_, err = s.DeleteProcess(ctx, "a", "e")
	add(err)
	_, err = s.Pids(ctx, "a")
	add(err)
	_, err = s.Stats(ctx, "a")
	add(err)
	add(s.Exec(ctx, task.ExecRequest{ContainerID: "a", ExecID: "e"}))
	add(s.Kill(ctx, "a", "", 9, false))
	add(s.ResizePty(ctx, "a", "", 1, 1))
	add(s.CloseIO(ctx, "a", ""))
	add(s.Pause(ctx, "a"))
	add(s.Resume(ctx, "a"))
	for i, err := range errs {
		if !errdefs.IsNotFound(err) {
			t.Errorf("call %d: error is %v, want not found", i, err)
		}
	}
	s.Leave()
	<-s.Done()
	if _, err := s.Create(ctx, runner.CreateRequest{ID: "a", Bundle: t.TempDir()}); !errdefs.IsUnavailable(err) {
		t.Errorf("create in a shim that ends: %v", err)
	}
	s.Close()
}

func TestARecordIsWholeAndReplacesTheOneBefore(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		if err := writeRecord(dir, exitRecord, exitState{ContainerID: "a", Status: uint32(i)}, true); err != nil {
			t.Fatal(err)
		}
		var got exitState
		if err := readRecord(dir, exitRecord, &got); err != nil || got.Status != uint32(i) {
			t.Errorf("record is %v, %v, want status %d", got, err, i)
		}
	}
	names, _ := os.ReadDir(dir)
	if len(names) != 1 {
		t.Errorf("the directory has %v", names)
	}
	if err := writeRecord(filepath.Join(dir, "absent"), exitRecord, 1, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a record nowhere: %v", err)
	}
}

func TestBirthTellsProcessesApart(t *testing.T) {
	me, err := birthOf(os.Getpid())
	if err != nil || me.Start == 0 || me.Boot == "" {
		t.Fatalf("birth is %v, %v", me, err)
	}
	parent, err := birthOf(os.Getppid())
	if err != nil || parent == me {
		t.Errorf("the parent's birth is %v, %v", parent, err)
	}
	if _, err := birthOf(1 << 30); err == nil {
		t.Error("nobody has a birth")
	}
}

func TestTheLastErrorOfALog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log.json")
	lines := strings.Repeat("noise\n", 20000) +
		`{"level":"error","msg":"first"}` + "\n" +
		`{"level":"error","msg":"second\n"}` + "\n" +
		`{"level":"info","msg":"third"}` + "\n"
	if err := os.WriteFile(log, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lastError(log); got != "second" {
		t.Errorf("last error is %q, want %q", got, "second")
	}
	if got := lastError(log + "absent"); got != "" {
		t.Errorf("last error of no log is %q", got)
	}
}

func TestCommonDir(t *testing.T) {
	for _, tt := range []struct {
		paths []string
		want  string
	}{
		{[]string{"/a/b/1/fs", "/a/b/2/fs"}, "/a/b"},
		{[]string{"/a/b", "/a/bc"}, "/a"},
		{[]string{"/a/b/c"}, "/a/b"},
		{[]string{"/a", "/b"}, ""},
		{[]string{"a", "b"}, ""},
	} {
		if got := commonDir(tt.paths); got != tt.want {
			t.Errorf("common directory of %v is %q, want %q", tt.paths, got, tt.want)
		}
	}
}

func TestMountsThatAreNotSupportedAreRefused(t *testing.T) {
	for _, o := range [][]string{{"loop"}, {"uidmap=0:1:2", "gidmap=0:1:2"}} {
		err := mountOne(mount.Mount{Type: "ext4", Source: "/x", Options: o}, t.TempDir())
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("options %s: error is %v, want not implemented", o, err)
		}
	}
}

func FuzzExecSpec(f *testing.F) {
	for _, s := range []string{`{}`, `{"terminal":true,"args":["a"],"user":{"uid":4294967295}}`, `null`, `[]`, `{"terminal":1,"terminal":2}`, `{"cwd":"/proc/self/fd/7"}`, `x`} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, spec []byte, terminal bool) {
		out, err := execSpec(spec, terminal)
		if err != nil {
			return
		}
		var was, is map[string]any
		if err := json.Unmarshal(out, &is); err != nil {
			t.Fatalf("%q became %q: %v", spec, out, err)
		}
		if is["terminal"] != terminal {
			t.Errorf("%q became %q: want terminal %t", spec, out, terminal)
		}
		json.Unmarshal(spec, &was)
		delete(was, "terminal")
		delete(is, "terminal")
		if diff := cmp.Diff(was, is); diff != "" {
			t.Errorf("something else changed: %s", diff)
		}
	})
}

func TestAWorkingDirectoryInProcIsRefused(t *testing.T) {
	for _, cwd := range []string{"/proc/self/fd/7", "/proc/1/cwd", "//proc//self", "/x/../proc/self/fd/8", "proc/self/fd/9", "/./proc/thread-self"} {
		b, _ := json.Marshal(map[string]string{"cwd": cwd})
		if _, err := execSpec(b, false); !errdefs.IsInvalidArgument(err) {
			t.Errorf("exec in %s: %v", cwd, err)
		}
		if _, err := execSpec(bytes.Replace(b, []byte("cwd"), []byte("CWD"), 1), false); err == nil {
			t.Errorf("exec in %s, shouted", cwd)
		}
		dir := t.TempDir()
		b, _ = json.Marshal(map[string]any{"process": map[string]string{"Cwd": cwd}})
		os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
		if _, err := readSpec(dir); !errdefs.IsInvalidArgument(err) {
			t.Errorf("create in %s: %v", cwd, err)
		}
	}
	for _, cwd := range []string{"/", "", "/proc", "/process", "/srv/proc/self"} {
		b, _ := json.Marshal(map[string]string{"cwd": cwd})
		if _, err := execSpec(b, false); err != nil {
			t.Errorf("exec in %s: %v", cwd, err)
		}
	}
}

func FuzzLastError(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"x"}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		log := filepath.Join(dir, "log")
		if err := os.WriteFile(log, b, 0o600); err != nil {
			t.Fatal(err)
		}
		lastError(log)
	})
}

func TestAllMountWordsAreKnownOnce(t *testing.T) {
	for w := range propagations {
		if _, twice := mountFlags[w]; twice {
			t.Errorf("%s is a flag and a propagation", w)
		}
	}
}
