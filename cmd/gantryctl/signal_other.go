//go:build !unix

package main

import "os"

var passedOn = []os.Signal{os.Interrupt}

const signalKill = 9

func isResize(os.Signal) bool { return false }

// signalNumber is an interrupt's: there are no others here.
func signalNumber(os.Signal) uint32 { return 2 }
