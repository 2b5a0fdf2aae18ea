package conformance

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBadConfigs starts daemons on what they must refuse: each says in one line
// what is wrong and leaves everything as it was.
func TestBadConfigs(t *testing.T) {
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	sockets := filepath.Join(dir, "s")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Run("an unknown key", func(t *testing.T) {
		file := config("key.toml", fmt.Sprintf("sockets = %q\nroot = %q\nrooot = \"x\"\n", sockets, filepath.Join(dir, "key")))
		refuses(t, exec.Command(filepath.Join(bin, "contentd"), "-config", file), dir, "key.toml:3", "rooot")
		refuses(t, exec.Command(filepath.Join(bin, "contentd"), "-check", "-config", file), dir, "rooot")
	})
	t.Run("a socket in use", func(t *testing.T) {
		used := filepath.Join(sockets, "contentd.sock")
		l, err := net.Listen("unix", used)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		file := config("used.toml", fmt.Sprintf("sockets = %q\nroot = %q\n", sockets, filepath.Join(dir, "used")))
		refuses(t, exec.Command(filepath.Join(bin, "contentd"), "-config", file), filepath.Join(dir, "s"), used)
	})
	t.Run("a state directory of another daemon", func(t *testing.T) {
		root := filepath.Join(dir, "other")
		file := config("imaged.toml", fmt.Sprintf("sockets = %q\nroot = %q\n", sockets, root))
		c := exec.Command(filepath.Join(bin, "imaged"), "-config", file)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; {
			if _, err := os.Stat(filepath.Join(sockets, "imaged.sock")); err == nil || time.Now().After(deadline) {
				break
			}
			<-time.After(20 * time.Millisecond)
		}
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
		file = config("contentd.toml", fmt.Sprintf("sockets = %q\nroot = %q\n", sockets, root))
		refuses(t, exec.Command(filepath.Join(bin, "contentd"), "-config", file), "", "imaged")
	})
}

// TestMissingRunc starts the suite on a node without runc, and asks a suite for
// a runtime that is not there.
func TestMissingRunc(t *testing.T) {
	s := startSuite(t)
	dir := t.TempDir()
	c := exec.Command(filepath.Join(s.bin, "gantryctl"), "--address", filepath.Join(dir, "sock"), "up",
		"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"))
	c.Env = append(os.Environ(), "PATH="+dir)
	refuses(t, c, dir, "runc is not installed", "apt-get install runc")

	s.ctr("images", "import", "--local", filepath.Join(s.bin, "demo.tar"))
	_, err := s.tryCtr("run", "--rm", "--runc-binary", "/nowhere/runc", "docker.io/library/demo:latest", "x", "/bin/true")
	if err == nil || !strings.Contains(err.Error(), "/nowhere/runc") {
		t.Errorf("run by a missing runc: %v; want an error that names it", err)
	}
	if out := s.ctr("tasks", "ls", "-q"); out != "" {
		t.Errorf("the failed run left the tasks %q", out)
	}
}

// TestBadArchives imports what must be refused and looks for what it left.
func TestBadArchives(t *testing.T) {
	s := startSuite(t)
	good, err := os.ReadFile(filepath.Join(s.bin, "demo.tar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		make func() []byte
		say  string
	}{
		{"truncated", func() []byte { return good[:len(good)*2/3] }, ""},
		{"empty", func() []byte { return nil }, ""},
		{"not an archive", func() []byte { return bytes.Repeat([]byte("nonsense"), 1000) }, ""},
		{"a blob of another digest", func() []byte {
			return rewrite(t, good, func(h *tar.Header, b []byte) []byte {
				if strings.HasPrefix(h.Name, "blobs/sha256/") && len(b) > 1000 {
					b[len(b)/2] ^= 1
				}
				return b
			})
		}, "digest"},
		{"a layer whose path climbs out", func() []byte { return climbing(t) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bad.tar")
			if err := os.WriteFile(file, c.make(), 0o600); err != nil {
				t.Fatal(err)
			}
			canary := filepath.Join(os.TempDir(), "gantry-climbed-out")
			_, err := s.tryCtl("image", "import", "--name", "bad:1", file)
			if err == nil && c.name != "a layer whose path climbs out" {
				t.Error("it was imported")
			}
			if err != nil && strings.Count(strings.TrimSpace(err.Error()), "\n") > 0 {
				t.Errorf("the error is more than a line: %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), c.say) {
				t.Errorf("the error does not say %q: %v", c.say, err)
			}
			if _, err := os.Lstat(canary); err == nil {
				t.Errorf("%s exists", canary)
				os.Remove(canary)
			}
			if out := s.ctl("image", "ls", "-o", "json"); err != nil && strings.Contains(out, "bad:1") {
				t.Errorf("image ls says %s after a refused import", out)
			}
		})
	}
	t.Run("a good one still goes", func(t *testing.T) {
		if out := s.ctl("run", "--rm", s.importDemo(), "/bin/echo", "fine"); out != "fine\n" {
			t.Errorf("echo prints %q", out)
		}
	})
}

// refuses runs c, which has to fail within 10 s, to say each of says, and to
// change nothing below dir.
func refuses(t *testing.T, c *exec.Cmd, dir string, says ...string) {
	t.Helper()
	before := listing(t, dir)
	var out lockedBuffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := time.AfterFunc(10*time.Second, func() { _ = c.Process.Kill() })
	err := c.Wait()
	if !ended.Stop() {
		t.Errorf("%s did not refuse", c)
	}
	if err == nil {
		t.Errorf("%s succeeded: %s", c, out.String())
	}
	for _, say := range says {
		if !strings.Contains(out.String(), say) {
			t.Errorf("%s does not say %q: %s", c, say, out.String())
		}
	}
	if after := listing(t, dir); after != before {
		t.Errorf("%s changed\n%s to\n%s", c, before, after)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	if dir == "" {
		return ""
	}
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		// Locks and directories that are made on the way to a refusal hold
		// nothing.
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(p, ".lock") {
			fmt.Fprintln(&b, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// rewrite passes every file of an archive through change.
func rewrite(t *testing.T, archive []byte, change func(*tar.Header, []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		b = change(h, b)
		h.Size = int64(len(b))
		put(t, w, h, b)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func put(t *testing.T, w *tar.Writer, h *tar.Header, b []byte) {
	t.Helper()
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// climbing makes an image whose one layer tries to write a file in the host's
// temporary directory in three ways.
func climbing(t *testing.T) []byte {
	t.Helper()
	target := filepath.Join(os.TempDir(), "gantry-climbed-out")
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	file := func(name string) {
		put(t, w, &tar.Header{Name: name, Mode: 0o644, Size: 1, Typeflag: tar.TypeReg}, []byte("x"))
	}
	file(strings.Repeat("../", 40) + strings.TrimPrefix(target, "/"))
	put(t, w, &tar.Header{Name: "out", Linkname: os.TempDir(), Typeflag: tar.TypeSymlink, Mode: 0o777}, nil)
	file("out/gantry-climbed-out")
	put(t, w, &tar.Header{Name: "up", Linkname: strings.Repeat("../", 40) + "tmp", Typeflag: tar.TypeSymlink, Mode: 0o777}, nil)
	file("up/gantry-climbed-out")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	var archive bytes.Buffer
	a := tar.NewWriter(&archive)
	blob := func(mediaType string, b []byte) map[string]any {
		sum := sha256.Sum256(b)
		name := hex.EncodeToString(sum[:])
		put(t, a, &tar.Header{Name: "blobs/sha256/" + name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg}, b)
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + name, "size": len(b)}
	}
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const oci = "application/vnd.oci.image."
	l := blob(oci+"layer.v1.tar", layer.Bytes())
	c := blob(oci+"config.v1+json", marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{l["digest"]}},
	}))
	m := blob(oci+"manifest.v1+json", marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": c, "layers": []any{l},
	}))
	index := marshal(map[string]any{"schemaVersion": 2, "manifests": []any{m}})
	put(t, a, &tar.Header{Name: "oci-layout", Mode: 0o644, Size: 30, Typeflag: tar.TypeReg}, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	put(t, a, &tar.Header{Name: "index.json", Mode: 0o644, Size: int64(len(index)), Typeflag: tar.TypeReg}, index)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
