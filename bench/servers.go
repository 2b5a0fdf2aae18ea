package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// installContainerd puts containerd's own binaries into dir, built by the go
// command from the released module.
func installContainerd(ctx context.Context, dir string) error {
	var missing []string
	for _, b := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		if _, err := os.Stat(filepath.Join(dir, b)); err != nil {
			missing = append(missing, "github.com/containerd/containerd/v2/cmd/"+b+"@"+containerdVersion)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	c := exec.CommandContext(ctx, "go", append([]string{"install"}, missing...)...)
	c.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	c.Stderr = os.Stderr
	return c.Run()
}

// A server is a started suite.
type server struct {
	address string
	state   string // where gantry's other sockets are
	cmd     *exec.Cmd
	log     string
}

// stop ends the server in its own way and waits for it.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	ended := time.AfterFunc(20*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait()
	ended.Stop()
}

func start(ctx context.Context, dir, address, binary string, args ...string) (*server, error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s := &server{address: address, log: log.Name(), cmd: exec.Command(binary, args...)}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"))
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	return s, nil
}

func startContainerd(ctx context.Context, bin, dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// CRI is no part of what is measured.
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [%q, %q, %q]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"),
		"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
		filepath.Join(dir, "containerd.sock"))
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	s, err := start(ctx, dir, filepath.Join(dir, "containerd.sock"), filepath.Join(bin, "containerd"), "--config", file)
	if err != nil {
		return nil, err
	}
	return s, s.wait(ctx, func() bool {
		return quiet(ctx, filepath.Join(bin, "ctr"), "-a", s.address, "version") == nil
	})
}

func startGantry(ctx context.Context, bin, dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	address := filepath.Join(dir, "gantry.sock")
	s, err := start(ctx, dir, address, filepath.Join(bin, "gantryctl"), "--address", address,
		"up", "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"))
	if err != nil {
		return nil, err
	}
	s.state = filepath.Join(dir, "state")
	return s, s.wait(ctx, func() bool {
		f, err := os.Open(s.log)
		if err != nil {
			return false
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if strings.Contains(sc.Text(), "ready on") {
				return true
			}
		}
		return false
	})
}

// wait returns when ready says so, and stops the server if it does not within
// half a minute.
func (s *server) wait(ctx context.Context, ready func() bool) error {
	deadline := time.After(30 * time.Second)
	for !ready() {
		select {
		case <-ctx.Done():
			s.stop()
			return ctx.Err()
		case <-deadline:
			s.stop()
			log, _ := os.ReadFile(s.log)
			return fmt.Errorf("%s is not ready:\n%s", s.cmd.Path, log)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
