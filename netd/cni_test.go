package netd

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/services/network"
)

// script makes a plugin of shell, called "fake", and returns its directory.
func script(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"fake": text, "loopback": "cat >/dev/null; echo '{\"cniVersion\":\"1.0.0\"}'"} {
		text = "#!/bin/sh\n" + strings.ReplaceAll(text, "DIR", dir) + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const fakeList = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"fake","capabilities":{"portMappings":true}}]}`

func fakeCall(t *testing.T) call {
	p, err := network.ParsePorts("127.0.0.1:8080:80,53:53/udp")
	if err != nil {
		t.Fatal(err)
	}
	return call{id: "gantry-1-a", netns: "/run/some/netns", list: []byte(fakeList), ports: p, dir: t.TempDir()}
}

func TestAPluginIsToldWhatItNeeds(t *testing.T) {
	t.Setenv("SECRET", "ours")
	dir := script(t, `cat >DIR/$CNI_COMMAND.in; env >DIR/$CNI_COMMAND.env
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.0.2/24","interface":1},{"address":"10.1.0.1/24","interface":0},{"address":"fd00::2/64"}]}'`)
	c := fakeCall(t)
	got, err := cni{dirs: []string{dir}}.Add(t.Context(), c)
	if err != nil || strings.Join(got, " ") != "10.1.0.2/24 fd00::2/64" {
		t.Fatalf("addresses %v, %v", got, err)
	}
	if err := (cni{dirs: []string{dir}}).Del(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"ADD", "DEL"} {
		in, _ := os.ReadFile(filepath.Join(dir, command+".in"))
		for _, want := range []string{`"hostPort":8080`, `"containerPort":80`, `"hostIP":"127.0.0.1"`, `"protocol":"udp"`} {
			if !strings.Contains(string(in), want) {
				t.Errorf("%s: it reads %s, without %s", command, in, want)
			}
		}
		env, _ := os.ReadFile(filepath.Join(dir, command+".env"))
		for _, want := range []string{"CNI_CONTAINERID=gantry-1-a", "CNI_NETNS=/run/some/netns", "CNI_IFNAME=eth0", "PATH=/usr"} {
			if !strings.Contains(string(env), want) {
				t.Errorf("%s: its environment %s is without %s", command, env, want)
			}
		}
		if strings.Contains(string(env), "SECRET") {
			t.Errorf("%s: it has our environment", command)
		}
	}
	if in, _ := os.ReadFile(filepath.Join(dir, "DEL.in")); !strings.Contains(string(in), "prevResult") {
		t.Errorf("DEL is not told what ADD had said: %s", in)
	}
}

func TestAPluginSaysWhatIsWrong(t *testing.T) {
	dir := script(t, `cat >/dev/null; echo '{"cniVersion":"1.0.0","code":11,"msg":"no address is left","details":"all taken"}'; exit 1`)
	_, err := cni{dirs: []string{dir}}.Add(t.Context(), fakeCall(t))
	wantText(t, err, "no address is left", "all taken")
	dir = script(t, `cat >/dev/null; yes | head -c 3000000 >&2; exit 3`)
	_, err = cni{dirs: []string{dir}}.Add(t.Context(), fakeCall(t))
	wantText(t, err, "exit status 3")
	if len(err.Error()) > 2000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
	_, err = cni{dirs: []string{t.TempDir()}}.Add(t.Context(), fakeCall(t))
	wantText(t, err, "loopback")
}

// TestADeadlineEndsAPluginAndItsChildren has a plugin that waits for a child
// which does not end.
func TestADeadlineEndsAPluginAndItsChildren(t *testing.T) {
	dir := script(t, `cat >/dev/null; sleep 1000 & echo $! >DIR/child.new; mv DIR/child.new DIR/child; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	c := fakeCall(t)
	go func() {
		_, err := cni{dirs: []string{dir}}.Add(ctx, c)
		ended <- err
	}()
	child := filepath.Join(dir, "child")
	eventually(t, "the child runs", func() bool { _, err := os.Stat(child); return err == nil })
	// Meanwhile nobody else works on the attachment.
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	wantKind(t, "a second", cni{dirs: []string{dir}}.Del(short, c), context.DeadlineExceeded)
	cancel()
	wantKind(t, "the first", <-ended, context.Canceled)
	pid, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child is gone", func() bool {
		b, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

// TestThePluginsOfADeadNetdAreWaitedFor leaves a child of a plugin behind, as a
// netd that is killed does: the lock is the child's.
func TestThePluginsOfADeadNetdAreWaitedFor(t *testing.T) {
	dir := script(t, `cat >/dev/null
[ $CNI_COMMAND = DEL ] && exit 0
(while [ ! -e DIR/go ]; do sleep 0.02; done) >/dev/null 2>&1 </dev/null &
echo '{"cniVersion":"1.0.0"}'`)
	c := fakeCall(t)
	p := cni{dirs: []string{dir}}
	if _, err := p.Add(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	err := p.Del(short, c)
	wantText(t, err, "an earlier netd")
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Del(t.Context(), c); err != nil {
		t.Error(err)
	}
}

func TestCollectIsForNewerPlugins(t *testing.T) {
	for version, want := range map[string]bool{"1.0.0": false, "1.1.0": true} {
		dir := script(t, `cat >DIR/$CNI_COMMAND.in`)
		p := cni{dirs: []string{dir}}
		list := strings.Replace(fakeList, "1.0.0", version, 1)
		if err := p.Collect(t.Context(), []byte(list), []string{"gantry-1-a"}); err != nil {
			t.Error(err)
		}
		in, err := os.ReadFile(filepath.Join(dir, "GC.in"))
		if got := err == nil && strings.Contains(string(in), `"containerID":"gantry-1-a"`); got != want {
			t.Errorf("version %s: collected %t, want %t (%s)", version, got, want, in)
		}
	}
}
