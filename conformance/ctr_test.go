package conformance

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestStockCtr drives the public socket with containerd's own client.
func TestStockCtr(t *testing.T) {
	s := startSuite(t)
	demo := filepath.Join(s.bin, "demo.tar")

	t.Run("version", func(t *testing.T) {
		if out := s.ctr("version"); !strings.Contains(out, "Server:") {
			t.Errorf("ctr version says %q", out)
		}
	})
	t.Run("plugins", func(t *testing.T) {
		out := s.ctr("plugins", "ls")
		for _, want := range []string{"io.containerd.snapshotter.v1", "io.containerd.content.v1", "io.containerd.runtime.v2"} {
			if !strings.Contains(out, want) {
				t.Errorf("ctr plugins ls does not list %s:\n%s", want, out)
			}
		}
	})

	s.ctr("images", "import", "--local", "--base-name", "example.test/demo", demo)
	image := strings.TrimSpace(s.ctr("images", "ls", "-q"))
	if image == "" || strings.Contains(image, "\n") {
		t.Fatalf("after one import ctr images ls -q says %q", image)
	}

	t.Run("content and snapshots", func(t *testing.T) {
		if out := s.ctr("content", "ls", "-q"); len(strings.Fields(out)) < 3 {
			t.Errorf("an image has an index, a config and a layer at least; content ls says %q", out)
		}
		if out := s.ctr("snapshots", "ls"); !strings.Contains(out, "Committed") {
			t.Errorf("import unpacks; snapshots ls says %q", out)
		}
	})
	t.Run("the difference of a snapshot is a layer", func(t *testing.T) {
		lines := strings.Split(strings.TrimSpace(s.ctr("snapshots", "ls")), "\n")
		name := strings.Fields(lines[len(lines)-1])[0]
		for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
			out := s.ctr("snapshots", "diff", "--media-type", mediaType, name)
			z, err := compression.DecompressStream(strings.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			n, found := 0, false
			for r := tar.NewReader(z); ; n++ {
				h, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%s: after %d entries: %v", mediaType, n, err)
				}
				found = found || h.Name == "bin/echo"
			}
			if !found {
				t.Errorf("%s: the layer has %d entries, and no bin/echo", mediaType, n)
			}
		}
	})
	t.Run("run prints and exits as its program does", func(t *testing.T) {
		if out := s.ctr("run", "--rm", image, "c1", "/bin/echo", "hello", "there"); out != "hello there\n" {
			t.Errorf("echo prints %q", out)
		}
		_, err := s.tryCtr("run", "--rm", image, "c2", "/bin/exit", "7")
		if code := exitCode(err); code != 7 {
			t.Errorf("exit 7 ends with %d: %v", code, err)
		}
	})
	t.Run("a detached task is listed, entered and killed", func(t *testing.T) {
		s.ctr("run", "-d", image, "c3", "/bin/sleep", "600")
		if out := s.ctr("tasks", "ls"); !strings.Contains(out, "c3") || !strings.Contains(out, "RUNNING") {
			t.Errorf("tasks ls says %q", out)
		}
		if out := s.ctr("tasks", "exec", "--exec-id", "e1", "c3", "/bin/echo", "inside"); out != "inside\n" {
			t.Errorf("exec prints %q", out)
		}
		if _, err := s.tryCtr("tasks", "exec", "--exec-id", "e2", "c3", "/bin/exit", "3"); exitCode(err) != 3 {
			t.Errorf("exec of exit 3: %v", err)
		}
		if out := s.ctr("tasks", "ps", "c3"); len(strings.Split(strings.TrimSpace(out), "\n")) != 2 {
			t.Errorf("tasks ps says %q", out)
		}
		s.ctr("tasks", "kill", "-s", "SIGKILL", "c3")
		s.eventually(10*time.Second, "the task is stopped", func() error {
			if out := s.ctr("tasks", "ls"); !strings.Contains(out, "STOPPED") {
				return errors.New(out)
			}
			return nil
		})
		s.ctr("tasks", "rm", "c3")
		s.ctr("containers", "rm", "c3")
		if out := s.ctr("containers", "ls", "-q"); strings.TrimSpace(out) != "" {
			t.Errorf("containers ls says %q after rm", out)
		}
	})
	t.Run("events of a run arrive in order", func(t *testing.T) {
		c := exec.Command(ctrBinary(t), "-a", s.address, "events")
		var out lockedBuffer
		c.Stdout = &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = c.Process.Signal(syscall.SIGTERM)
			_ = c.Wait()
		}()
		// ctr does not say when it has subscribed: tell it things until it
		// hears one.
		s.eventually(10*time.Second, "ctr hears events", func() error {
			s.ctr("namespaces", "label", "default", fmt.Sprintf("t=%d", time.Now().UnixNano()))
			if !strings.Contains(out.String(), "/namespaces/update") {
				return errors.New("nothing yet")
			}
			return nil
		})
		s.ctr("run", "--rm", image, "c4", "/bin/true")
		want := []string{"/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete"}
		s.eventually(10*time.Second, "all events are heard", func() error {
			rest := out.String()
			for _, topic := range want {
				i := strings.Index(rest, topic+" ")
				if i < 0 {
					return fmt.Errorf("no %s in order in:\n%s", topic, out.String())
				}
				rest = rest[i:]
			}
			return nil
		})
	})
	t.Run("pull from a registry", func(t *testing.T) {
		registry := startRegistry(t)
		ref := registry + "/demo:1"
		s.ctr("images", "tag", "--local", image, ref)
		s.ctr("images", "push", "--local", "--plain-http", ref)
		s.ctr("images", "rm", ref)
		s.ctr("-n", "pulled", "images", "pull", "--local", "--plain-http", ref)
		if out := s.ctr("-n", "pulled", "run", "--rm", ref, "p1", "/bin/echo", "pulled"); out != "pulled\n" {
			t.Errorf("a pulled image prints %q", out)
		}
		s.ctr("-n", "pulled", "images", "rm", ref)
	})
	t.Run("images rm", func(t *testing.T) {
		s.ctr("images", "rm", image)
		if out := s.ctr("images", "ls", "-q"); strings.TrimSpace(out) != "" {
			t.Errorf("images ls says %q after rm", out)
		}
	})
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// startRegistry runs the distribution registry on a loopback port until the
// test ends and returns its host and port.
func startRegistry(t *testing.T) string {
	t.Helper()
	const version = "v3.1.2"
	dir := install(t, "github.com/distribution/distribution/v3/cmd/registry@"+version)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := filepath.Join(t.TempDir(), "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", t.TempDir(), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(filepath.Join(dir, version, "registry"), "serve", config)
	c.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	for deadline := time.Now().Add(15 * time.Second); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("the registry does not listen: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}
