// Bench measures gantry beside containerd v2.4.2, in one run on one machine, and
// prints medians and ratios.
//
//	go run . [-n 40] [-bin ../bin]
//
// It needs root and runc. It installs containerd's own binaries with go install
// into -cache, starts both suites on scratch directories, imports one image
// into each, and runs /bin/true in turn, A B A B …, so that a drift of the
// machine's speed meets all alike. It ends what it started.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// containerdVersion is what everything is measured against.
const containerdVersion = "v2.4.2"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	n := fs.Int("n", 40, "counted `runs` of each")
	warm := fs.Int("warmup", 5, "`runs` of each that do not count")
	bin := fs.String("bin", "../bin", "`directory` of gantry's binaries")
	image := fs.String("image", "../bin/demo.tar", "OCI archive `file` that has a /bin/true")
	name := fs.String("name", "demo:latest", "`name` the archive gives the image")
	cache := fs.String("cache", "../.build/containerd-"+containerdVersion, "`directory` for containerd's binaries")
	most := fs.Float64("most", 0, "fail if the ratio of ctr on gantry to ctr on containerd is above this; 0 is no limit")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("needs root: it runs containers")
	}
	for _, p := range []*string{bin, image, cache} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if err := installContainerd(ctx, *cache); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "gantry-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)

	ctd, err := startContainerd(ctx, *cache, filepath.Join(scratch, "c"))
	if err != nil {
		return err
	}
	defer ctd.stop()
	gan, err := startGantry(ctx, *bin, filepath.Join(scratch, "g"))
	if err != nil {
		return err
	}
	defer gan.stop()

	ctr := filepath.Join(*cache, "ctr")
	ctl := filepath.Join(*bin, "gantryctl")
	if err := quiet(ctx, ctr, "-a", ctd.address, "images", "import", "--local", *image); err != nil {
		return err
	}
	if err := quiet(ctx, ctr, "-a", gan.address, "images", "import", "--local", *image); err != nil {
		return err
	}
	ref, err := output(ctx, ctr, "-a", ctd.address, "images", "ls", "-q")
	if err != nil {
		return err
	}
	if f := strings.Fields(ref); len(f) == 1 {
		*name = f[0]
	}

	id := 0
	ctrRun := func(address string) func(context.Context) error {
		return func(ctx context.Context) error {
			id++
			return quiet(ctx, ctr, "-a", address, "run", "--rm", *name, fmt.Sprintf("bench-%d", id), "/bin/true")
		}
	}
	rows := []*row{
		{name: "ctr run, containerd " + containerdVersion, do: ctrRun(ctd.address)},
		{name: "ctr run, gantry", do: ctrRun(gan.address)},
		{name: "gantryctl run, gantry", do: func(ctx context.Context) error {
			return quiet(ctx, ctl, "--address", gan.address, "run", "--rm", *name, "/bin/true")
		}},
	}
	for i := range *warm + *n {
		for _, r := range rows {
			start := time.Now()
			if err := r.do(ctx); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			if i >= *warm {
				r.took = append(r.took, time.Since(start))
			}
		}
	}
	print(out, rows)
	if ratio := rows[1].ratio(rows[0]); *most > 0 && ratio > *most {
		return fmt.Errorf("ratio %.2f is above %.2f", ratio, *most)
	}
	return nil
}

// A row is one way to run a container and how long each run took.
type row struct {
	name string
	do   func(context.Context) error
	took []time.Duration
}

// ratio is the median of the ratios run by run, which a drift of the machine's
// speed touches least.
func (r *row) ratio(base *row) float64 {
	var q []float64
	for i := range r.took {
		q = append(q, float64(r.took[i])/float64(base.took[i]))
	}
	return median(q)
}

func print(out io.Writer, rows []*row) {
	fmt.Fprintf(out, "%-28s %10s %10s %10s %8s\n", "run of /bin/true, serial", "min ms", "median ms", "max ms", "ratio")
	for _, r := range rows {
		fmt.Fprintf(out, "%-28s %10.1f %10.1f %10.1f %8.2f\n", r.name,
			ms(slices.Min(r.took)), ms(median(r.took)), ms(slices.Max(r.took)), r.ratio(rows[0]))
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median[T cmp.Ordered](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

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

func quiet(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var stdout, stderr strings.Builder
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
