package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/task/shimserve"
	"github.com/gantryd/gantry/shim"
)

const (
	addressFile = "address"  // in the bundle: where the shim listens
	pidFile     = "shim.pid" // in the bundle

	farewellTime = 2 * time.Second  // for the answer to the call that ended us
	flushTime    = 10 * time.Second // for the events that nobody has yet

	memoryLimit = 16 << 20
)

// start is the action that stock daemons know: it starts a shim that listens
// already when it is told where.
func start(a argv, args []string) error {
	stdin, err := readStdin()
	if err != nil {
		return err
	}
	s, err := shimserve.ParseStart(stdin, a.id, a.namespace)
	if err != nil {
		return err
	}
	path, err := socketPath(s.SocketDir, a.address, a.namespace, a.id)
	if err != nil {
		return err
	}
	lis, err := listen(path)
	if err != nil {
		return err
	}
	answer, err := s.Answer("unix://" + path)
	if err == nil {
		err = spawn(lis, stdin, args)
	}
	if err != nil {
		nameOf(path).remove()
		return err
	}
	_, err = os.Stdout.Write(answer)
	return err
}

// spawn starts this program in serve mode, with the socket and what was on
// stdin.
func spawn(lis *net.UnixListener, stdin []byte, args []string) error {
	socket, err := lis.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	in := os.NewFile(uintptr(fd), "stdin")
	defer in.Close()
	if _, err := in.Write(stdin); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	if _, err := in.Seek(0, 0); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	flags := args[:len(args)-1] // the last one is the action
	cmd := exec.Command(self, append(append([]string{}, flags...), "-listener", "3", actionServe)...)
	cmd.Stdin = in
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// serve is the shim itself. When it can be reached it says so in one line on
// stdout, closes it, and lives on.
func serve(a argv) error {
	tune()
	dropInherited(a.listener)
	stdin, err := readStdin()
	if err != nil {
		return err
	}
	s, err := shimserve.ParseStart(stdin, a.id, a.namespace)
	if err != nil {
		return err
	}
	bundle, err := bundleOf(a)
	if err != nil {
		return err
	}
	if err := shim.BecomeSubreaper(); err != nil {
		return err
	}
	path, err := socketPath(s.SocketDir, a.address, a.namespace, a.id)
	if err != nil {
		return err
	}
	lis, err := serveListener(a.listener, path)
	if err != nil {
		return err
	}
	name := nameOf(path)
	defer name.remove()
	if err := openLog(bundle); err != nil {
		return err
	}
	level := slog.LevelInfo
	if a.debug || s.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("shim", a.id, "namespace", a.namespace)
	needs := shim.Needs{Log: log}
	if to := eventAddress(s); to != "" {
		f := shimserve.NewForwarder(to, a.namespace)
		defer f.Close()
		needs.Events = f
	}
	sh, err := shim.Open(a.config(bundle), needs)
	if err != nil {
		return err
	}
	defer sh.Close()
	srv, err := shimserve.NewServer(sh, os.Getpid(), s.Options)
	if err != nil {
		return err
	}
	if a.listener == 0 {
		line, err := shimserve.ReadyLine("unix://" + path)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(line); err != nil {
			return err
		}
	}
	if err := detach(); err != nil {
		return err
	}
	settle(log, bundle, path, s)
	return live(sh, srv, lis, name, log)
}

// live serves until the shim has to end, then says farewell.
func live(sh *shim.Shim, srv *shimserve.Server, lis net.Listener, name *socketName, log *slog.Logger) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	leave := make(chan os.Signal, 1)
	signal.Notify(leave, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	const works = 2
	ended := make(chan error, works)
	go func() { ended <- sh.Publish(ctx) }()
	go func() { ended <- sh.Reap(ctx, children) }()
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(lis) }()

	var err error
	for over := false; !over; {
		select {
		case <-sh.Done():
			over = true
		case err = <-failed:
			over = true
		case <-leave:
			log.Info("the shim ends when its processes have")
			sh.Leave()
		}
	}
	name.remove() // first: a next shim of this id may come
	farewell, cancel := context.WithTimeout(context.Background(), farewellTime)
	srv.Farewell(farewell)
	cancel()
	srv.Close()
	select {
	case <-sh.Told():
	case <-time.After(flushTime):
		log.Warn("events are left in the bundle that nobody took")
	}
	stop()
	for range works {
		<-ended
	}
	return err
}

func serveListener(fd int, path string) (net.Listener, error) {
	if fd == 0 {
		return listen(path)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	return net.FileListener(f)
}

func eventAddress(s shimserve.Start) string {
	if a := os.Getenv("TTRPC_ADDRESS"); a != "" {
		return a
	}
	return s.EventAddress
}

// tune keeps the process small. Two threads are enough for pumps and calls.
func tune() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2)
	}
	debug.SetGCPercent(40)
	debug.SetMemoryLimit(memoryLimit)
}

// dropInherited closes what whoever started us has leaked: no container may
// have it, and nobody may wait for us to close it. What Go has opened is
// close-on-exec, so that what is not came from outside.
func dropInherited(keep int) {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil || fd <= 2 || fd == keep {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}

// openLog makes the FIFO that the daemon reads our stderr. It is opened for
// both ends, so that a daemon that is away neither holds us nor ends us: what
// does not fit is lost. Without it, nobody listens.
func openLog(bundle string) error {
	fd, err := unix.Open(filepath.Join(bundle, "log"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // whoever started us has made no log: keep what it gave
	}
	defer unix.Close(fd)
	return unix.Dup3(fd, 2, 0)
}

// detach lets go of stdin and stdout.
func detach() error {
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return errors.Join(unix.Dup3(fd, 0, 0), unix.Dup3(fd, 1, 0))
}

// settle does what need not be done before the shim can be reached. None of it
// is worth a container.
func settle(log *slog.Logger, bundle, path string, s shimserve.Start) {
	unix.Setsid() // fails if whoever started us has done it
	err := errors.Join(
		os.WriteFile(filepath.Join(bundle, addressFile), []byte("unix://"+path), 0o600),
		os.WriteFile(filepath.Join(bundle, pidFile), []byte(strconv.Itoa(os.Getpid())), 0o600),
		lowerOOMScore(),
	)
	if os.Getenv("SCHED_CORE") != "" {
		// Our containers share a core with nobody else's.
		err = errors.Join(err, unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, unix.PR_SCHED_CORE_SCOPE_PROCESS_GROUP, 0))
	}
	if s.ShimCgroup != "" {
		err = errors.Join(err, shim.JoinCgroup(s.ShimCgroup))
	}
	if err != nil {
		log.Warn("the shim is not settled as it should be", "err", err)
	}
}

// lowerOOMScore makes us a likelier victim than the daemon that started us, by
// one.
func lowerOOMScore() error {
	const file = "/proc/self/oom_score_adj"
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(min(n+1, 1000))), 0)
}

func pathOf(address string) (string, bool) {
	return strings.CutPrefix(strings.TrimSpace(address), "unix://")
}
