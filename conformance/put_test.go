package conformance

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Sizes of the blob that is put, and of what is sent before something dies.
const (
	putSize = 64 << 20
	putHalf = 32 << 20
)

// someFile writes putSize bytes and returns them with their digest.
func someFile(t *testing.T, seed byte) (name string, body []byte, digest string) {
	t.Helper()
	body = make([]byte, putSize)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(body)
	name = filepath.Join(t.TempDir(), "some")
	if err := os.WriteFile(name, body, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, body, fmt.Sprintf("sha256:%x", sha256.Sum256(body))
}

// A halfPut is a gantryctl content put that was given the first half.
type halfPut struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err lockedBuffer
}

// putFirstHalf starts a put and returns when contentd has most of the half.
func (s *suite) putFirstHalf(body []byte, args ...string) *halfPut {
	s.t.Helper()
	p := &halfPut{}
	p.cmd = exec.Command(filepath.Join(s.bin, "gantryctl"), append([]string{"--address", s.address, "content", "put"}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	if _, err := p.in.Write(body[:putHalf]); err != nil {
		s.t.Fatal(err)
	}
	s.eventually(30*time.Second, "contentd has the first half", func() error {
		var rows []struct {
			Offset int64 `json:"offset"`
		}
		out := s.ctl("content", "ingests", "-o", "json")
		if err := json.Unmarshal([]byte(out), &rows); err != nil {
			return err
		}
		if len(rows) != 1 || rows[0].Offset < putHalf*3/4 {
			return fmt.Errorf("ingests: %s", out)
		}
		return nil
	})
	return p
}

// wantPut is an error unless the suite has the blob, and gives it out.
func (s *suite) wantPut(digest string, body []byte) {
	s.t.Helper()
	s.ctl("content", "verify", digest)
	file := filepath.Join(s.t.TempDir(), "got")
	s.ctl("content", "get", "-f", file, digest)
	if got, err := os.ReadFile(file); err != nil || string(got) != string(body) {
		s.t.Errorf("get wrote %d bytes, %v", len(got), err)
	}
	if got := s.ctl("content", "ingests", "-o", "json"); got != "[]\n" {
		s.t.Errorf("ingests are left: %s", got)
	}
	if got := s.ctl("content", "du"); !strings.Contains(got, "\ndefault ") {
		s.t.Errorf("du does not count it:\n%s", got)
	}
}

// TestPutOutlivesContentd kills contentd in the middle of a put that cannot read
// its bytes again. The put goes on.
func TestPutOutlivesContentd(t *testing.T) {
	s := startSuite(t)
	for seed, args := range [][]string{{"-"}, {"--ref", "mine", "-"}} {
		_, body, digest := someFile(t, byte(seed))
		p := s.putFirstHalf(body, args...)
		if err := syscall.Kill(s.status()["contentd"].Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := p.in.Write(body[putHalf:]); err != nil {
			t.Fatalf("put ended: %v: %s", err, p.err.String())
		}
		p.in.Close()
		if err := p.cmd.Wait(); err != nil || p.out.String() != digest+"\n" {
			t.Fatalf("put: %v: %s%s", err, p.out.String(), p.err.String())
		}
		s.wantPut(digest, body)
	}
}

// TestPutIsResumed kills gantryctl in the middle of a put, and contentd too. The
// next put of the same bytes sends the rest.
func TestPutIsResumed(t *testing.T) {
	s := startSuite(t)
	file, body, digest := someFile(t, 7)
	p := s.putFirstHalf(body, "--digest", digest, "-")
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	if err := syscall.Kill(s.status()["contentd"].Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Digest  string `json:"digest"`
		Existed bool   `json:"existed"`
		Resumed int64  `json:"resumed"`
	}
	// A total that was not known before is no other one.
	out := s.ctl("content", "put", "-o", "json", file)
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 1 {
		t.Fatalf("put prints %s: %v", out, err)
	}
	if r := rows[0]; r.Digest != digest || r.Existed || r.Resumed < putHalf*3/4 {
		t.Errorf("put prints %+v; want it resumed after %d or more", r, putHalf*3/4)
	}
	s.wantPut(digest, body)
	if out := s.ctl("content", "put", "-o", "json", file); !strings.Contains(out, `"existed": true`) {
		t.Errorf("put of what is there prints %s", out)
	}
}
