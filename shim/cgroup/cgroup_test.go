package cgroup

import (
	"os"
	"slices"
	"testing"

	"github.com/gantryd/gantry/services/runner"
)

func TestIOStat(t *testing.T) {
	got, ok := parseIOStat("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n")
	want := runner.IOStat{Major: 8, Minor: 16, ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4}
	if !ok || got != want {
		t.Errorf("parsed %+v, %t", got, ok)
	}
	for _, bad := range []string{"", "8:16", "x rbytes=1"} {
		if _, ok := parseIOStat(bad); ok {
			t.Errorf("%q is parsed", bad)
		}
	}
}

func TestAProcessThatIsNotThereHasNoCgroup(t *testing.T) {
	c := Of(1 << 30)
	if c.Known() {
		t.Error("it is known")
	}
	if _, err := c.Pids(); err == nil {
		t.Error("it has processes")
	}
	if _, err := c.Stats(); err == nil {
		t.Error("it is measured")
	}
	if c.OOMKills() != 0 {
		t.Error("the kernel has killed in it")
	}
}

func TestFilesOfNumbers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"flat": "low 0\noom_kill 3\nbad x\nworse\n", "one": "42\n", "max": "max\n", "junk": "junk",
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var c Cgroup
	if got := c.flat(dir, "flat"); len(got) != 2 || got["oom_kill"] != 3 {
		t.Errorf("flat is %v", got)
	}
	got := []uint64{c.number(dir, "one"), c.number(dir, "max"), c.number(dir, "junk"), c.number(dir, "absent")}
	if want := []uint64{42, 1<<64 - 1, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("numbers are %v, want %v", got, want)
	}
}
