package contentd

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/kv"
)

// A telling is what a blob's file says of one namespace, or that it says nothing
// of any.
type telling struct {
	digest    digest.Digest
	size      int64
	namespace string // empty if it says nothing
	note      note
}

// tellings reads the notes of a file.
func (s *Store) tellings(d digest.Digest, size int64) []telling {
	notes := notesOf(s.path(d))
	if len(notes) == 0 {
		return []telling{{digest: d, size: size}}
	}
	var all []telling
	for ns, n := range notes {
		all = append(all, telling{digest: d, size: size, namespace: ns, note: n})
	}
	return all
}

// cost is how much of a transaction the records take at most.
func (t telling) cost() int {
	const keys, values = 3, 300
	labels, _ := json.Marshal(t.note.Labels) // strings, which it always can
	return keys*(len(t.namespace)+len(t.digest)+60) + values + len(labels)
}

// remakeAll makes the records of blobs that are missing, in as many transactions
// as they take. It says how many, and of how many files nobody was known.
func (s *Store) remakeAll(ctx context.Context, files map[digest.Digest]int64) (made, nobodys int, err error) {
	for batch := range slices.Chunk(slices.Sorted(maps.Keys(files)), rebuildBatch) {
		var told []telling
		for _, d := range batch {
			told = append(told, s.tellings(d, files[d])...)
		}
		for len(told) > 0 {
			done, m, n := 0, 0, 0
			if err := s.db.Update(ctx, func(tx *kv.Tx) error {
				done, m, n = 0, 0, 0
				for room := txRoom; done < len(told); done++ {
					t := told[done]
					if room -= t.cost(); room < 0 && done > 0 {
						break
					}
					is, nobody, err := s.remake(tx, t)
					if err != nil {
						return err
					}
					if nobody {
						n++
					} else if is {
						m++
					}
				}
				return nil
			}); err != nil {
				return made, nobodys, err
			}
			made, nobodys, told = made+m, nobodys+n, told[done:]
		}
	}
	return made, nobodys, nil
}

// remake makes the record of a blob in a namespace if it is missing, and says
// whether it was, and whether nobody was known to have the blob.
func (s *Store) remake(tx *kv.Tx, t telling) (made, nobodys bool, err error) {
	d := t.digest
	trashed, err := present(tx, trashKey(d))
	if err != nil {
		return false, false, err
	}
	if known, err := sizeOf(tx, d); err == nil && !trashed && known != t.size {
		return false, false, nil // it is not whole
	}
	ns := t.namespace
	if ns == "" {
		if trashed || had(tx, d) {
			return false, false, nil
		}
		ns, nobodys = s.cfg.Recovered, true
	}
	if there, err := present(tx, blobKey(ns, d)); err != nil || there {
		return false, false, err
	}
	now := s.now()
	b := blob{Size: t.size, Created: now, Updated: now, Labels: maps.Clone(t.note.Labels)}
	if t.note.Created > 0 {
		b.Created = time.Unix(0, t.note.Created).UTC()
	}
	if b.Labels == nil {
		b.Labels = make(map[string]string)
	}
	b.Labels[rootLabel] = now.Format(time.RFC3339)
	return true, nobodys, errors.Join(
		tx.PutJSON(blobKey(ns, d), b),
		tx.PutJSON(haveKey(d, ns), t.size),
		tx.Delete(trashKey(d)),
	)
}
