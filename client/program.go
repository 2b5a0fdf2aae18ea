package client

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Program is what a process runs, where and as whom. The zero value but for
// Args runs as root in "/".
type Program struct {
	Args     []string
	Env      []string // "KEY=value"; a later one replaces an earlier one
	Cwd      string   // absolute; empty is what the image says, or "/"
	User     string   // as for ParseUser; empty is what the image says
	Terminal bool
}

// pathDefault is where programs are looked for if nobody says so.
const pathDefault = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Over returns p laid over what an image's config says. Arguments replace the
// image's Cmd and follow its Entrypoint, as the image specification has it.
func (p Program) Over(c ocispec.ImageConfig) Program {
	args := p.Args
	if len(args) == 0 {
		args = c.Cmd
	}
	over := Program{
		Args:     slices.Concat(c.Entrypoint, args),
		Env:      slices.Concat(c.Env, p.Env),
		Cwd:      p.Cwd,
		User:     p.User,
		Terminal: p.Terminal,
	}
	if over.Cwd == "" {
		over.Cwd = c.WorkingDir
	}
	if over.User == "" {
		over.User = c.User
	}
	return over
}

// process returns p as the runtime specification spells it. What cannot run
// safely is [errdefs.ErrInvalidArgument].
func (p Program) process() (*specs.Process, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, fmt.Errorf("no program to run: the image names none, so give one: %w", errdefs.ErrInvalidArgument)
	}
	cwd, err := checkCwd(p.Cwd)
	if err != nil {
		return nil, err
	}
	user, err := ParseUser(p.User)
	if err != nil {
		return nil, err
	}
	env, err := p.environment()
	if err != nil {
		return nil, err
	}
	for _, a := range p.Args {
		if strings.ContainsRune(a, 0) {
			return nil, fmt.Errorf("argument %q: zero byte: %w", a, errdefs.ErrInvalidArgument)
		}
	}
	return &specs.Process{
		Terminal: p.Terminal,
		User: specs.User{
			UID: user.UID,
			GID: user.GID,
			// Without it the process would have no group but its first, and a
			// file that denies that group would be open to it.
			AdditionalGids: []uint32{user.GID},
		},
		Args:            p.Args,
		Env:             env,
		Cwd:             cwd,
		Capabilities:    capabilities(),
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		NoNewPrivileges: true,
	}, nil
}

// checkCwd refuses a working directory in /proc: through a descriptor that the
// runtime has open it may lead out of the container.
func checkCwd(cwd string) (string, error) {
	if cwd == "" {
		return "/", nil
	}
	clean := path.Clean(cwd)
	switch {
	case !path.IsAbs(cwd), strings.ContainsRune(cwd, 0):
		return "", fmt.Errorf("working directory %q is not an absolute path: %w", cwd, errdefs.ErrInvalidArgument)
	case clean == "/proc", strings.HasPrefix(clean, "/proc/"):
		return "", fmt.Errorf("working directory %q is in /proc: %w", cwd, errdefs.ErrInvalidArgument)
	}
	return clean, nil
}

// environment returns p.Env with one entry per key, in the order in which the
// keys first appear.
func (p Program) environment() ([]string, error) {
	env := []string{pathDefault}
	if p.Terminal {
		env = append(env, "TERM=xterm")
	}
	at := make(map[string]int, len(p.Env)+len(env))
	for i, e := range env {
		key, _, _ := strings.Cut(e, "=")
		at[key] = i
	}
	for _, e := range p.Env {
		key, _, ok := strings.Cut(e, "=")
		if !ok || key == "" || strings.ContainsRune(e, 0) {
			return nil, fmt.Errorf("environment %q is not of the form KEY=value: %w", e, errdefs.ErrInvalidArgument)
		}
		if i, ok := at[key]; ok {
			env[i] = e
			continue
		}
		at[key] = len(env)
		env = append(env, e)
	}
	return env, nil
}

// capabilities are what root may do in a container. None is inheritable: a
// program that the container's root starts for another user would get it.
func capabilities() *specs.LinuxCapabilities {
	all := []string{
		"CAP_AUDIT_WRITE",
		"CAP_CHOWN",
		"CAP_DAC_OVERRIDE",
		"CAP_FOWNER",
		"CAP_FSETID",
		"CAP_KILL",
		"CAP_MKNOD",
		"CAP_NET_BIND_SERVICE",
		"CAP_NET_RAW",
		"CAP_SETFCAP",
		"CAP_SETGID",
		"CAP_SETPCAP",
		"CAP_SETUID",
		"CAP_SYS_CHROOT",
	}
	return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
}
