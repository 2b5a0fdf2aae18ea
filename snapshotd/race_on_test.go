//go:build race

package snapshotd

// raced says that the race detector is at work: everything takes ten times as long,
// and memory is not what it is.
const raced = true
