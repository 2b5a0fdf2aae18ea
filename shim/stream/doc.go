// Package stream carries what a container's processes read and write between
// the pipes or terminals that they have and the FIFOs and files where clients
// want it. It waits for nobody who does not come, and loses nothing of what
// somebody reads; the rules are in package shim.
package stream
