package contentd

import "github.com/opencontainers/go-digest"

func (s *Store) isLost(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost[d]
}

// lose notes that a blob has records and no bytes.
func (s *Store) lose(d digest.Digest, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[d] = true
	s.log.Error("the bytes of a blob are lost: it counts as absent", "digest", d, "err", why)
}

// find notes that the bytes are there.
func (s *Store) find(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lost, d)
}
