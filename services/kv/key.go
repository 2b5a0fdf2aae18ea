package kv

import "strings"

// In a key, NUL separates parts. Bytes 0 and 1 inside a part are escaped by 1,
// so that any string is a part, keys sort as their parts do, and no part can
// pass for two.
var (
	escape   = strings.NewReplacer("\x00", "\x01\x01", "\x01", "\x01\x02")
	unescape = strings.NewReplacer("\x01\x01", "\x00", "\x01\x02", "\x01")
)

// Key joins parts with a separator that none of them can contain, so that a
// scan of Key(a, "") sees a's children only. Parts may hold any byte.
func Key(parts ...string) []byte {
	n := len(parts)
	for _, p := range parts {
		n += len(p)
	}
	key := make([]byte, 0, n)
	for i, p := range parts {
		if i > 0 {
			key = append(key, 0)
		}
		if strings.ContainsAny(p, "\x00\x01") {
			p = escape.Replace(p)
		}
		key = append(key, p...)
	}
	return key
}

// Parts takes a key apart again.
func Parts(key []byte) []string {
	parts := strings.Split(string(key), "\x00")
	for i, p := range parts {
		if strings.Contains(p, "\x01") {
			parts[i] = unescape.Replace(p)
		}
	}
	return parts
}
