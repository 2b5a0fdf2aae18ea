// Probe is what the tests run in containers: one static program that does what
// its arguments say and needs nothing of its root file system.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"exit", "0"}
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	number := func(i int) int {
		n, _ := strconv.Atoi(arg(i))
		return n
	}
	switch args[0] {
	case "exit": // N
		os.Exit(number(1))
	case "echo": // WORDS…
		fmt.Println(strings.Join(args[1:], " "))
	case "both": // writes to stdout and stderr
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
	case "sleep": // SECONDS
		time.Sleep(time.Duration(number(1)) * time.Second)
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "fds":
		fds()
	case "tty":
		tty()
	case "trap": // says it is ready, and exits with N at SIGTERM
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		os.Exit(number(1))
	case "flood": // N bytes
		w := bufio.NewWriter(os.Stdout)
		for i := range number(1) {
			w.WriteByte('a' + byte(i%26))
		}
		w.Flush()
	case "flooded": // N bytes, then a line on stderr
		os.Stdout.Write(make([]byte, number(1)))
		fmt.Fprintln(os.Stderr, "done")
	case "heir": // leaves a child that holds the streams for N seconds
		child := exec.Command("/proc/self/exe", "sleep", arg(1))
		child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("left", child.Process.Pid)
	case "family": // N children that sleep, and sleeps itself
		for range number(1) {
			exec.Command("/proc/self/exe", "sleep", "1000").Start()
		}
		fmt.Println("ready")
		time.Sleep(1000 * time.Second)
	case "orphans": // N grandchildren without a parent, which end soon
		for range number(1) {
			c := exec.Command("/proc/self/exe", "orphan")
			c.Run()
		}
		fmt.Println("ready")
		time.Sleep(1000 * time.Second)
	case "orphan":
		exec.Command("/proc/self/exe", "exit", "0").Start()
	case "eat": // N MiB
		var all [][]byte
		for range number(1) {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println(len(all))
	default:
		fmt.Fprintln(os.Stderr, "probe: unknown:", args[0])
		os.Exit(2)
	}
}

func fds() {
	names, _ := filepath.Glob("/proc/self/fd/*")
	var seen []string
	for _, n := range names {
		to, err := os.Readlink(n)
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") {
			continue // the directory itself, and what Go's runtime opened
		}
		seen = append(seen, filepath.Base(n)+"="+strings.SplitN(to, ":", 2)[0])
	}
	sort.Strings(seen)
	fmt.Println(strings.Join(seen, " "))
}

func tty() {
	var size struct{ Row, Col, X, Y uint16 }
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	if e != 0 {
		fmt.Println("no terminal")
		os.Exit(1)
	}
	fmt.Printf("terminal %dx%d\n", size.Col, size.Row)
	line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Printf("read %q\n", strings.TrimSpace(line))
	syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	fmt.Printf("terminal %dx%d\n", size.Col, size.Row)
}
