//go:build unix

package main

import (
	"os"
	"syscall"
)

// passedOn are the signals that a program gets instead of gantryctl.
var passedOn = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// linuxSignals is how Linux counts those that other systems count otherwise.
var linuxSignals = map[os.Signal]uint32{syscall.SIGUSR1: 10, syscall.SIGUSR2: 12}

const signalKill = uint32(syscall.SIGKILL)

func isResize(s os.Signal) bool { return s == syscall.SIGWINCH }

func signalNumber(s os.Signal) uint32 {
	if n, ok := linuxSignals[s]; ok {
		return n
	}
	return uint32(s.(syscall.Signal))
}
