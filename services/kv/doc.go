// Package kv is the database that a daemon keeps its records in: ordered keys,
// transactions that are durable when they return, and group commit.
//
// # On disk
//
//	<dir>/            a Badger database
//	<dir>/ballast     space held back, so that a full disk still opens, closes
//	                  and lets go
//	<dir>/witness     how many commits there were, to be disproved by
//	<dir>.new/        a database that is about to take this one's place
//
// One row, which no caller can reach, says whose database this is, which layout
// its keys have, and its incarnation. Another, the ledger, says how many rows
// there are and what they hash to.
//
// # What survives a crash
//
// Every update that was acknowledged, whole; of one that was not, all or
// nothing. A process killed between making a log file and sizing it leaves an
// empty file that Badger refuses, so Open removes empty log files first.
//
// # Damage
//
// Open reads every table within bounds before Badger maps it, compares the rows
// with the ledger, which every commit rewrites, and the ledger with the witness:
// what is missing, damaged or older than it was is [errdefs.ErrDataLoss], and
// nothing ends the process. A log may end in one transaction that is not whole,
// whose commit never returned. That it did return can be told only by the
// witness, which is not synced: after a loss of power, damage to the very last
// transaction, or the loss of a whole log with nothing behind it, may go
// unnoticed; so may a directory that is, as a whole, an older copy. Of a table
// that is damaged while it is in use Badger says that its rows are not there;
// Verify, and every backup, find that.
//
// # Group commit
//
// Badger syncs its log once per transaction, whoever waits. So callers queue,
// one of them at a time takes everything that waits, runs the functions one
// after the other, each on top of what those before it wrote, and commits them
// as one transaction: one sync for all. A function that fails is left out. There
// is no goroutine to own: the work is done by whichever caller is next.
//
// # Locking
//
// The turn (a channel of one) is held while a group runs and commits; mu guards
// the queue and the count of users, is a leaf, and is never held while a
// caller's function runs. The cache's own is a leaf too.
//
// # Limits
//
// A key is at most 65,000 bytes and a value 15 MiB. A transaction has at most
// some 3,200 keys and 300 KiB, where a value over 300 KiB counts for nothing: it
// is kept in a file of its own kind. The queue is as long as there are callers.
// Update needs [Options].FreeMin of free disk: a write of Badger's into a mapped
// file that finds no block would end the process. Release needs 16 MiB, or a log
// that has been given all its blocks and is not full, or the ballast, in this
// order. A disk that somebody else fills from 16 MiB to nothing while Badger
// makes a table, some milliseconds every 2 MiB of log, is not guarded against.
package kv
