//go:build !race

package main

// raceFlags are those of the shim that a test without -race drives.
var raceFlags []string
