//go:build !race

package snapshotd

const raced = false
