//go:build race

package difftest

// Raced says that the race detector is at work, with which everything takes ten
// times as long and more memory: tests of many cases take some of them.
const Raced = true
