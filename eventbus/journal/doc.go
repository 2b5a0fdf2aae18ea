// Package journal keeps records in the order in which they were appended, each
// with a sequence, and syncs once for all who append at the same time.
//
// # On disk
//
//	<dir>/stream              which stream this is, its newest segment, and a sequence
//	                          below which all may have been told, as JSON
//	<dir>/<sequence>.seg      records, from that sequence on; 20 digits
//	<dir>/<sequence>.seg.bad  a segment that begins with nonsense, out of the way
//	<dir>/*.new               the next state or segment, while it is written
//
// A segment begins with 64 bytes: "gantry journal 1" (16), the epoch (16), the
// sequence of the first record (8), when it was made (8), nothing (12), and the
// CRC of all that (4). Then come records:
//
//	length  4  of what follows the CRC
//	crc     4  Castagnoli, of what follows it
//	seq     8
//	synced  8  the newest sequence that was on the disk when this was written
//	time    8  when it was taken in, nanoseconds since 1970
//	id      2  length of the id, and the id
//	body    …  the rest
//
// Numbers are little-endian. A length of zero is the end: segments are reserved
// in one piece, so that no append changes their size.
//
// # What survives a crash
//
// Every record that was acknowledged, with its sequence. What was being written
// when the power failed is cut off at the next Open.
//
// Where a record is damaged, or the disk cannot read it, the next good one is
// found, and only what is between them is missing: whoever reads sees a jump in
// the sequences. Damage is told from what was never finished by what was written
// when the record was on the disk: the "synced" of a later one, or the state,
// which is written at Close and ten seconds after the last record. A stream whose
// newest segment is missing or begins with nonsense is put aside, as nobody knows
// its last sequence, and the new one has another epoch.
//
// A disk that is full refuses appends and nothing else; they succeed when there
// is space again.
//
// # Locking
//
// One of those who append leads: it writes and syncs for all who wait, then hands
// over. What only the leader touches needs no lock. Journal.mu guards the rest and
// is not held across a change of the disk.
//
// # Limits
//
// A body: 1 MiB and its headers, [BodyMax]. A turn: 4,096 records or a MiB. The
// latest 65,536 ids are known; after Open, those of the last hour.
package journal
