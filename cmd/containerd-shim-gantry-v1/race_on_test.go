//go:build race

package main

// raceFlags are those of the shim that a test with -race drives.
var raceFlags = []string{"-race"}
