package contentd

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/kv"
	"github.com/gantryd/gantry/services/lease"
)

// schema is the version of the keys and records below.
const schema = 1

// A blob is what a namespace knows of one.
type blob struct {
	Size    int64             `json:"size"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	Labels  map[string]string `json:"labels,omitempty"`
}

func (b blob) info(d digest.Digest) content.Info {
	return content.Info{Digest: d, Size: b.Size, CreatedAt: b.Created, UpdatedAt: b.Updated, Labels: b.Labels}
}

// An ingest is a blob being written.
type ingest struct {
	File     string        `json:"file"`            // in ingest/
	Total    int64         `json:"total,omitempty"` // bytes
	Expected digest.Digest `json:"expected,omitempty"`
	Started  time.Time     `json:"started"`
	Updated  time.Time     `json:"updated"` // when Saved was
	Expires  time.Time     `json:"expires"` // unless it is being written, or a lease has it
	Saved    *saved        `json:"saved,omitempty"`
	Lent     bool          `json:"lent,omitempty"` // others may have the file open to write
}

// saved is the hash of an ingest's first bytes.
type saved struct {
	Offset    int64            `json:"offset"`
	Algorithm digest.Algorithm `json:"algorithm"`
	State     []byte           `json:"state"`
}

// trash is bytes that no namespace has.
type trash struct {
	Since time.Time `json:"since"`
	Size  int64     `json:"size"`
}

// newFile is a name in ingest/ that no ingest has.
func newFile() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// isFile says whether newFile could have made the name: nothing else becomes a
// path.
func isFile(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 16
}

// getIngest is [errdefs.ErrNotFound] if there is no such ingest.
func getIngest(tx *kv.Tx, key []byte) (ingest, error) {
	value, err := tx.Get(key)
	if err != nil {
		return ingest{}, err
	}
	return readIngest(key, value)
}

// readIngest is [errdefs.ErrDataLoss] for a record that is damaged.
func readIngest(key, value []byte) (ingest, error) {
	var rec ingest
	if err := json.Unmarshal(value, &rec); err != nil {
		return ingest{}, fmt.Errorf("record %q: %w: %w", key, err, errdefs.ErrDataLoss)
	}
	if !isFile(rec.File) {
		return ingest{}, fmt.Errorf("record %q: %q is not a file of an ingest: %w", key, rec.File, errdefs.ErrDataLoss)
	}
	return rec, nil
}

func blobKey(ns string, d digest.Digest) []byte { return kv.Key("blob", ns, d.String()) }

func haveKey(d digest.Digest, ns string) []byte { return kv.Key("have", d.String(), ns) }

func trashKey(d digest.Digest) []byte { return kv.Key("trash", d.String()) }

func ingestKey(ns, ref string) []byte { return kv.Key("ingest", ns, ref) }

// digestOf reads the digest after the family of a key: "" where there is none,
// which only damage leaves there, and fsck removes.
func digestOf(key []byte) digest.Digest {
	if parts := kv.Parts(key); len(parts) > 1 {
		if d := digest.Digest(parts[1]); content.CheckDigest(d) == nil {
			return d
		}
	}
	return ""
}

// had says whether any namespace has the blob.
func had(tx *kv.Tx, d digest.Digest) bool {
	for range tx.Scan(kv.Key("have", d.String(), ""), nil) {
		return true
	}
	return false
}

// holdersOf returns the namespaces that have the blob.
func holdersOf(tx *kv.Tx, d digest.Digest) []string {
	var all []string
	for key := range tx.Scan(kv.Key("have", d.String(), ""), nil) {
		all = append(all, kv.Parts(key)[2])
	}
	return all
}

// sizeOf returns how many bytes a blob has that some namespace has, or had
// until just now: [errdefs.ErrNotFound] if none did.
func sizeOf(tx *kv.Tx, d digest.Digest) (int64, error) {
	for _, value := range tx.Scan(kv.Key("have", d.String(), ""), nil) {
		return readHave(value)
	}
	var t trash
	err := tx.GetJSON(trashKey(d), &t)
	return t.Size, err
}

func readHave(value []byte) (int64, error) {
	var size int64
	if err := json.Unmarshal(value, &size); err != nil {
		return 0, fmt.Errorf("size %q of a blob: %w: %w", value, err, errdefs.ErrDataLoss)
	}
	return size, nil
}

// present says whether there is such a key.
func present(tx *kv.Tx, key []byte) (bool, error) {
	_, err := tx.Get(key)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// A membership is that an object of a namespace belongs to a lease: two rows,
// to be found from both sides.
type membership struct {
	ns    string
	lease lease.Ref
	of    lease.Resource
}

func (m membership) keys() [2][]byte {
	generation := fmt.Sprintf("%016x", m.lease.Generation)
	return [2][]byte{
		kv.Key("lease", m.ns, m.lease.ID, generation, m.of.Type, m.of.ID),
		kv.Key("member", m.ns, m.of.Type, m.of.ID, m.lease.ID, generation),
	}
}

// membersKey is what the keys of a lease's members begin with.
func membersKey(ns string, l lease.Ref) []byte {
	return kv.Key("lease", ns, l.ID, fmt.Sprintf("%016x", l.Generation), "")
}

// resourceAt reads the member at the end of a key: false where there is none, which
// only damage leaves there.
func resourceAt(key []byte) (lease.Resource, bool) {
	parts := kv.Parts(key)
	if len(parts) != 6 {
		return lease.Resource{}, false
	}
	return lease.Resource{Type: parts[4], ID: parts[5]}, true
}

func (m membership) put(tx *kv.Tx) error {
	k := m.keys()
	return errors.Join(tx.Put(k[0], nil), tx.Put(k[1], nil))
}

func (m membership) remove(tx *kv.Tx) error {
	k := m.keys()
	return errors.Join(tx.Delete(k[0]), tx.Delete(k[1]))
}

// leasesOf returns the memberships of an object.
func leasesOf(tx *kv.Tx, ns string, of lease.Resource) ([]membership, error) {
	var all []membership
	for key := range tx.Scan(kv.Key("member", ns, of.Type, of.ID, ""), nil) {
		m, err := memberAt(key)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// memberAt is [errdefs.ErrDataLoss] for a row that put never wrote.
func memberAt(key []byte) (membership, error) {
	parts := kv.Parts(key)
	if len(parts) != 6 {
		return membership{}, fmt.Errorf("record %q is not of a member: %w", key, errdefs.ErrDataLoss)
	}
	m := membership{ns: parts[1], of: lease.Resource{Type: parts[2], ID: parts[3]}, lease: lease.Ref{ID: parts[4]}}
	if _, err := fmt.Sscanf(parts[5], "%x", &m.lease.Generation); err != nil {
		return membership{}, fmt.Errorf("record %q: %w: %w", key, err, errdefs.ErrDataLoss)
	}
	return m, nil
}

// leave ends the memberships of an object, in every lease or in those of an id.
func leave(tx *kv.Tx, ns string, of lease.Resource, id string) error {
	all, err := leasesOf(tx, ns, of)
	for _, m := range all {
		if id == "" || m.lease.ID == id {
			err = errors.Join(err, m.remove(tx))
		}
	}
	return err
}

func contentOf(d digest.Digest) lease.Resource {
	return lease.Resource{ID: d.String(), Type: lease.TypeContent}
}

func ingestOf(ref string) lease.Resource {
	return lease.Resource{ID: ref, Type: lease.TypeIngests}
}
