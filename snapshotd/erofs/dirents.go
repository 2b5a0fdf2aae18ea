package erofs

// A dirent is a name in a directory.
type dirent struct {
	name string
	slot uint64
	kind byte
}

// dirSize returns how many bytes a directory of these names has, which with
// "." and ".." are in order. Each block stands alone.
func dirSize(names []string) int64 {
	full, used := int64(0), 0
	for _, n := range names {
		need := direntSize + len(n)
		if used+need > blockSize {
			full, used = full+1, 0
		}
		used += need
	}
	return full<<blockBits + int64(used)
}

// encodeDir returns the contents of a directory.
func encodeDir(list []dirent) []byte {
	var b []byte
	for len(list) > 0 {
		count, used := 0, 0
		for count < len(list) && used+direntSize+len(list[count].name) <= blockSize {
			used += direntSize + len(list[count].name)
			count++
		}
		b = append(b, make([]byte, -len(b)&(blockSize-1))...)
		at := len(b)
		b = append(b, make([]byte, used)...)
		nameAt := count * direntSize
		for i, e := range list[:count] {
			d := b[at+i*direntSize:]
			le.PutUint64(d, e.slot)
			le.PutUint16(d[8:], uint16(nameAt))
			d[10] = e.kind
			nameAt += copy(b[at+nameAt:], e.name)
		}
		list = list[count:]
	}
	return b
}
