// Prog is every program that the promises of tasks run, in one static
// executable, by the name it is called by.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	args := os.Args
	switch filepath.Base(args[0]) {
	case "true":
	case "false":
		os.Exit(1)
	case "exit":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			os.Exit(2)
		}
		os.Exit(n)
	case "sleep":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("ready")
		os.Exit(128 + int((<-signals).(syscall.Signal)))
	case "ignore":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1)
		for range signals {
		}
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			os.Exit(1)
		}
	default:
		os.Exit(127)
	}
}
