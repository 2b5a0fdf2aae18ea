package contentd

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
)

// Usage implements [content.Meter]. It reads rows in batches and asks the disk
// about files, not about their bytes.
func (s *Store) Usage(ctx context.Context) (content.Usage, error) {
	u, err := s.usageOfBlobs(ctx)
	if err != nil {
		return u, err
	}
	if err := s.eachBatch(kv.Key("trash", ""), ctx.Err, func(_ *kv.Tx, _, value []byte) error {
		var t trash
		if json.Unmarshal(value, &t) == nil {
			u.Trash.Bytes += t.Size
		}
		u.Trash.Count++
		return nil
	}); err != nil {
		return u, err
	}
	names, err := os.ReadDir(s.ingests())
	if err != nil {
		return u, err
	}
	for _, n := range names {
		if fi, err := n.Info(); err == nil && isFile(n.Name()) {
			u.Ingests.Count++
			u.Ingests.Bytes += fi.Size()
		}
	}
	if u.Quarantine.Count, u.Quarantine.Bytes, err = s.quarantineUsage(); err != nil {
		return u, err
	}
	u.Free, err = s.disk.Free(s.cfg.Root)
	return u, err
}

// usageOfBlobs adds up the rows that say who has what, which are in order of
// digests.
func (s *Store) usageOfBlobs(ctx context.Context) (content.Usage, error) {
	var u content.Usage
	all := make(map[string]*content.NamespaceUsage)
	var last digest.Digest
	var owners []*content.NamespaceUsage
	size := int64(0)
	end := func() {
		if len(owners) == 0 {
			return
		}
		u.Blobs.Count++
		u.Blobs.Bytes += size
		for _, n := range owners {
			n.Blobs++
			n.Bytes += size
			if len(owners) > 1 {
				n.Shared += size
			}
		}
		owners = owners[:0]
	}
	err := s.eachBatch(kv.Key("have", ""), ctx.Err, func(_ *kv.Tx, key, value []byte) error {
		p := kv.Parts(key)
		if len(p) != 3 {
			return nil
		}
		if d := digest.Digest(p[1]); d != last {
			end()
			last = d
		}
		if all[p[2]] == nil {
			all[p[2]] = &content.NamespaceUsage{Namespace: p[2]}
		}
		owners = append(owners, all[p[2]])
		size, _ = readHave(value)
		return nil
	})
	end()
	for _, ns := range slices.Sorted(maps.Keys(all)) {
		u.Namespaces = append(u.Namespaces, *all[ns])
	}
	return u, err
}

// eachBatch calls row for every key of a family, in transactions that are short,
// and between after each.
func (s *Store) eachBatch(prefix []byte, between func() error, row func(tx *kv.Tx, key, value []byte) error) error {
	for from := []byte(nil); ; {
		rows := 0
		if err := s.db.View(func(tx *kv.Tx) error {
			for key, value := range tx.Scan(prefix, from) {
				if err := row(tx, key, value); err != nil {
					return err
				}
				from = append(key, 0)
				if rows++; rows == checkBatch {
					break
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if err := between(); err != nil || rows < checkBatch {
			return err
		}
	}
}
