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

// encodeDir hands the contents of a directory to put, block by block, and returns
// how many bytes they are.
func encodeDir(list []dirent, put func(b []byte, at int64) error) (size int64, err error) {
	block := make([]byte, 0, blockSize)
	for at := int64(0); len(list) > 0; at += blockSize {
		count, used := 0, 0
		for count < len(list) && used+direntSize+len(list[count].name) <= blockSize {
			used += direntSize + len(list[count].name)
			count++
		}
		block = block[:used]
		nameAt := count * direntSize
		for i, e := range list[:count] {
			d := block[i*direntSize:]
			le.PutUint64(d, e.slot)
			le.PutUint16(d[8:], uint16(nameAt))
			d[10], d[11] = e.kind, 0
			nameAt += copy(block[nameAt:], e.name)
		}
		if err := put(block, at); err != nil {
			return 0, err
		}
		size, list = at+int64(used), list[count:]
	}
	return size, nil
}
