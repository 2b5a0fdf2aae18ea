package taskd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/task"
	"github.com/gantryd/gantry/services/typed"
)

// runtime is every way this package deals with other processes, and no other.
// It is here so that a test can be the shims, and can end the daemon between
// any two steps.
type runtime interface {
	// find returns the executable of a runtime: [errdefs.ErrInvalidArgument]
	// if there is none.
	find(name string) (string, error)

	// start starts a shim and returns where it listens. It calls born as soon
	// as there is a process that is the shim; of a shim that starts itself
	// that is not known.
	start(ctx context.Context, l launch, born func(process) error) (task.ShimAddress, error)

	// connect is [task.ShimProtocol]'s.
	connect(ctx context.Context, namespace string, a task.ShimAddress) (task.Shim, error)

	// clean runs the shim's delete command: it ends what a dead shim has left,
	// and says how the first process ended.
	clean(ctx context.Context, l launch) (task.Exit, error)

	// watch returns a channel that is closed when the process has ended:
	// [errdefs.ErrNotFound] if it has already.
	watch(p process) (<-chan struct{}, error)

	// signal sends a signal to a process; one that has ended is fine.
	signal(p process, s syscall.Signal) error

	// identify returns the process that has a pid now.
	identify(pid int) (process, error)

	// strays returns the processes that have dir as their working directory.
	strays(dir string) ([]process, error)

	// close ends the watches. The processes live on.
	close()
}

// A launch says which shim is started or cleaned up after.
type launch struct {
	bundle
	binary  string
	options *typed.Value
}

// own reports whether the shim is the suite's own: it is started in one step
// and needs no second process to end well.
func (l launch) own() bool { return isOwn(l.binary) }

func isOwn(binary string) bool { return filepath.Base(binary) == OwnShim }

// A finder finds the executables of runtimes.
type finder struct {
	runtimes map[string]string
	beside   string   // directory of our own executable
	path     []string // directories of $PATH
}

// find turns a runtime's name into an executable by containerd's rules: what
// the config says of the name; else an absolute path is itself, and
// "io.containerd.runc.v2" is "containerd-shim-runc-v2".
func (f finder) find(name string) (string, error) {
	binary, known := f.runtimes[name]
	switch {
	case known && filepath.IsAbs(binary):
		return executable(name, binary)
	case known:
		return f.search(name, binary, append([]string{f.beside}, f.path...))
	case filepath.IsAbs(name):
		if _, err := executable(name, name); err != nil {
			return "", fmt.Errorf("invalid custom binary path: %w", err)
		}
		return filepath.Clean(name), nil
	}
	binary, err := binaryName(name)
	if err != nil {
		return "", err
	}
	dirs := append(slices.Clip(f.path), f.beside)
	if binary == OwnShim {
		dirs = append([]string{f.beside}, f.path...)
	}
	return f.search(name, binary, dirs)
}

// binaryName makes "containerd-shim-NAME-VERSION" of a name's last two
// components.
func binaryName(name string) (string, error) {
	parts := strings.Split(name, ".")
	bad := strings.ContainsFunc(name, func(r rune) bool {
		return r == '/' || r <= ' ' || r == 0x7f
	})
	if bad || len(parts) < 2 || parts[len(parts)-2] == "" || parts[len(parts)-1] == "" {
		return "", fmt.Errorf("invalid runtime name %q, correct runtime name should be either format like `io.containerd.runc.v2` or a full path to the binary: %w",
			name, errdefs.ErrInvalidArgument)
	}
	return "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1], nil
}

func (f finder) search(name, binary string, dirs []string) (string, error) {
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue // what is found depends on nobody's working directory
		}
		if path, err := executable(name, filepath.Join(dir, binary)); err == nil {
			return path, nil
		}
	}
	return "", notInstalled(name, binary)
}

func notInstalled(name, binary string) error {
	return fmt.Errorf("runtime %q binary not installed %q: %v: %w", name, binary, fs.ErrNotExist, errdefs.ErrInvalidArgument)
}

func executable(name, path string) (string, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", notInstalled(name, path)
	case err != nil:
		return "", fmt.Errorf("runtime %q: %v: %w", name, err, errdefs.ErrInvalidArgument)
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return "", fmt.Errorf("runtime %q: %s is not executable: %w", name, path, errdefs.ErrInvalidArgument)
	}
	return path, nil
}
