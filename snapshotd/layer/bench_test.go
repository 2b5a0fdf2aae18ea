package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotd/inflate"
)

// benchLarge is 9,000 files whose sizes have a long tail, some 250 MB, and
// benchSmall 5,000 of some 2 KB, each with the gzip of it.
var (
	benchLarge = sync.OnceValue(func() [2][]byte { return benchArchive(9000, 3600, 2) })
	benchSmall = sync.OnceValue(func() [2][]byte { return benchArchive(5000, 2000, 0.5) })
)

func benchArchive(files int, median, spread float64) [2][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = make([]byte, 1+r.IntN(10))
		for j := range words[i] {
			words[i][j] = byte(min(r.IntN(256), r.IntN(256)))
		}
	}
	var archive, packed bytes.Buffer
	w := tar.NewWriter(&archive)
	for i := range files {
		dir := fmt.Sprintf("usr/lib/d%d", i/20)
		if i%20 == 0 {
			_ = w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
		}
		size := int(min(median*math.Exp(spread*r.NormFloat64()), 24<<20))
		body := make([]byte, 0, size+300)
		for len(body) < size {
			if n := len(body); n > 300 && r.IntN(12) == 0 {
				at := r.IntN(n - 260)
				body = append(body, body[at:at+3+int(20*r.ExpFloat64())%250]...)
			}
			body = append(body, words[min(r.IntN(4000), r.IntN(4000), r.IntN(4000))]...)
		}
		_ = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/f%d", dir, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)})
		_, _ = w.Write(body[:size])
	}
	_ = w.Close()
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(archive.Bytes())
	_ = z.Close()
	return [2][]byte{archive.Bytes(), packed.Bytes()}
}

// BenchmarkApply is Apply beside what it cannot be faster than, each alone:
// decompressing, hashing, and writing the same files one after the other.
func BenchmarkApply(b *testing.B) {
	needRoot(b)
	for _, l := range []struct {
		name string
		of   func() [2][]byte
	}{{"large", benchLarge}, {"small", benchSmall}} {
		archive, packed := l.of()[0], l.of()[1]
		run := func(name string, do func(dir string) error) {
			b.Run(l.name+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(archive)))
				root := b.TempDir()
				var used time.Duration
				for i := 0; b.Loop(); i++ {
					dir := filepath.Join(root, fmt.Sprint(i))
					b.StopTimer()
					err := os.Mkdir(dir, 0o755)
					unix.Sync()
					before := cpuTime()
					b.StartTimer()
					if err = errors.Join(err, do(dir)); err != nil {
						b.Fatal(err)
					}
					used += cpuTime() - before
				}
				// What other work of the machine changes least.
				b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
			})
		}
		run("gunzip", func(string) error {
			_, err := io.Copy(io.Discard, inflate.NewReader(bytes.NewReader(packed)))
			return err
		})
		run("hash", func(string) error { sha256.Sum256(archive); return nil })
		run("write", func(dir string) error { return writeAlone(dir, archive) })
		run("write and sync", func(dir string) error { return errors.Join(writeAlone(dir, archive), syncFS(dir)) })
		for _, sync := range []bool{false, true} {
			run(fmt.Sprintf("apply, sync %t", sync), func(dir string) error {
				to, err := os.Open(dir)
				if err != nil {
					return err
				}
				defer to.Close()
				_, err = Apply(b.Context(), descriptor(packed, ocispec.MediaTypeImageLayerGzip), reader(packed), Target{Own: to})
				if sync {
					err = errors.Join(err, syncFS(dir))
				}
				return err
			})
		}
	}
}

// cpuTime is what the process has used of processors.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// writeAlone makes the files and directories of an archive, one after the other,
// as simply as it is done.
func writeAlone(dir string, archive []byte) error {
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, hdr.Name)
		if hdr.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		ts := timespec(hdr.ModTime)
		err = errors.Join(err, f.Chown(hdr.Uid, hdr.Gid), f.Chmod(os.FileMode(hdr.Mode)), futimens(int(f.Fd()), &[2]unix.Timespec{ts, ts}), f.Close())
		if err != nil {
			return err
		}
	}
}
