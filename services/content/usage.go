package content

import "context"

// An Amount is how many there are of something, and how large they are in all.
type Amount struct {
	Count int64
	Bytes int64
}

// A NamespaceUsage is what a namespace has.
type NamespaceUsage struct {
	Namespace string
	Blobs     int64
	Bytes     int64
	Shared    int64 // of Bytes, those that another namespace has too
}

// A Usage is what takes the room of a store.
type Usage struct {
	Namespaces []NamespaceUsage // in order of their names
	Blobs      Amount           // that some namespace has, each counted once
	Ingests    Amount
	Trash      Amount // bytes that no namespace has, to be removed
	Quarantine Amount // bytes that were found to be wrong
	Free       int64  // bytes of disk
}

// A Meter says what takes the room of a store, across its namespaces.
type Meter interface {
	Usage(ctx context.Context) (Usage, error)
}
