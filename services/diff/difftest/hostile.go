package difftest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Hostile is a layer that tries to harm: to reach out of the tree that it is
// extracted into, or to be expensive.
type Hostile struct {
	Name      string
	Below     []byte // archive of a layer to apply before, if any
	Layer     []byte
	MediaType string        // of Layer; empty is an archive without compression
	Digest    digest.Digest // of Layer, if that is a lie

	// Refused says that Layer is an error, [errdefs.ErrInvalidArgument]; if
	// not, it is applied, and the tree has the files in Want, as [Tree]
	// describes them.
	Refused bool
	Want    map[string]string

	// Slow says that it is expensive by its size, which is nothing for the
	// race detector.
	Slow bool
}

// Hostiles returns the corpus. canary is the absolute path of a directory with
// a file called "file" in it, both of which the layers try to change.
func Hostiles(canary string) []Hostile {
	var all []Hostile
	for _, part := range [][]Hostile{
		names(canary), links(canary), hardLinks(canary), whiteouts(canary), kinds(canary), headers(), streams(), sizes(),
	} {
		all = append(all, part...)
	}
	return all
}

func accepted(name string, want map[string]string, entries ...Entry) Hostile {
	return Hostile{Name: name, Layer: Tar(entries...), Want: want}
}

func refused(name string, entries ...Entry) Hostile {
	return Hostile{Name: name, Layer: Tar(entries...), Refused: true}
}

func refusedRaw(name string, blocks ...[]byte) Hostile {
	return Hostile{Name: name, Layer: raw(blocks...), Refused: true}
}

// over is h on top of the layer of entries.
func over(h Hostile, entries ...Entry) Hostile {
	h.Below = Tar(entries...)
	return h
}

func names(canary string) []Hostile {
	up := strings.Repeat("../", 40)
	all := []Hostile{
		accepted("an absolute name", map[string]string{strings.TrimPrefix(canary, "/") + "/file": "file evil"}, File(canary+"/file", "evil")),
		refused("a name that climbs out", File("../evil", "evil")),
		refused("a name that climbs out to the canary", File(up+canary+"/file", "evil")),
		refused("a directory that climbs out", Dir("a/../..")),
		refused("a name that climbs out and comes back", Dir("a"), File("a/../../a/evil", "evil")),
		accepted("a name that climbs inside", map[string]string{"b": "file fine", "a": "dir"}, Dir("a"), File("a/../b", "fine")),
		accepted("names with dots and slashes", map[string]string{"a/b": "file fine"}, Dir("./a"), File(".//a/.//b", "fine")),
		accepted("the root as a directory", map[string]string{"a": "file fine"}, Dir("."), File("a", "fine"), Dir("/")),
		refused("the root as a file", File(".", "evil")),
		refused("the root as a link", Symlink("./", canary)),
		refused("the root as a hard link", File("a", ""), Link("/", "a")),
		refused("the root as a pipe", Node(".", tar.TypeFifo, 0, 0)),
		refused("a name as a file and as its directory", File("a", ""), File("a/b", "evil")),
		refused("a component of 256 bytes", File(strings.Repeat("n", 256), "evil")),
		accepted("a component of 255 bytes", map[string]string{strings.Repeat("n", 255): "file fine"}, File(strings.Repeat("n", 255), "fine")),
		refused("a name longer than a path can be", File(strings.Repeat("long/", 1000)+"evil", "evil")),
		accepted("a deep tree", map[string]string{strings.Repeat("d/", 900) + "f": "file fine"}, File(strings.Repeat("d/", 900)+"f", "fine")),
		accepted("names with control characters", map[string]string{"new\nline\x1b[2J": "file fine", "back\\slash": "file fine"},
			File("new\nline\x1b[2J", "fine"), File("back\\slash", "fine")),
		accepted("names that differ in case only, or in spelling", map[string]string{"A": "file 1", "a": "file 2", "\u00e9": "file 3", "e\u0301": "file 4"},
			File("A", "1"), File("a", "2"), File("\u00e9", "3"), File("e\u0301", "4")),
	}
	deeper := []Entry{Dir("top")}
	at := "top"
	for i := range 6 {
		// Each link names a directory as deep as a name can say.
		for j := range 400 {
			deeper = append(deeper, Dir(at+"/"+strings.Repeat("d/", j)+"d"))
		}
		link := fmt.Sprint("link", i)
		deeper = append(deeper, Symlink(link, at+"/"+strings.Repeat("d/", 399)+"d"))
		at = link
	}
	return append(all, accepted("a tree deeper than a path can be", nil, deeper...))
}

func links(canary string) []Hostile {
	up := strings.Repeat("../", 40) + strings.TrimPrefix(canary, "/")
	inside := strings.TrimPrefix(canary, "/")
	chain := func(n int) []Entry {
		all := []Entry{Dir("end")}
		for i := range n {
			to := fmt.Sprint("l", i+1)
			if i == n-1 {
				to = "end"
			}
			all = append(all, Symlink(fmt.Sprint("l", i), to))
		}
		return append(all, File("l0/f", "x"))
	}
	return []Hostile{
		accepted("a link to the canary, then a file through it",
			map[string]string{"l": "link " + canary, inside + "/file": "file evil"}, Symlink("l", canary), File("l/file", "evil")),
		accepted("a link that climbs to the canary, then a file through it",
			map[string]string{inside + "/file": "file evil"}, Symlink("l", up), File("l/file", "evil")),
		accepted("a link to the canary's file, then a file in its place",
			map[string]string{"l": "file evil"}, Symlink("l", canary+"/file"), File("l", "evil")),
		accepted("a link to the canary, then a directory in its place",
			map[string]string{"l": "dir", "l/file": "file evil"}, Symlink("l", canary), Dir("l"), File("l/file", "evil")),
		accepted("a link to the canary, then a link through it",
			nil, Symlink("l", canary), Symlink("l/file", "/etc"), Dir("l/dir")),
		accepted("a directory, then a link to the canary in its place",
			map[string]string{"d": "link " + canary, inside + "/file": "file evil"},
			Dir("d"), File("d/file", "fine"), Symlink("d", canary), File("d/file", "evil")),
		accepted("two links that lead out together",
			nil, Dir("a"), Symlink("a/l", ".."), Symlink("a/m", "l/../.."), File("a/m"+canary+"/file", "evil")),
		over(accepted("a file through a link of the layer below",
			map[string]string{"usr/lib/new": "file new", "lib": "link usr/lib", "usr/lib/old": "file old"}, File("lib/new", "new")),
			Dir("usr"), Dir("usr/lib"), File("usr/lib/old", "old"), Symlink("lib", "usr/lib")),
		over(accepted("a file through a link to the canary in the layer below",
			map[string]string{inside + "/file": "file evil"}, File("l/file", "evil"), File("l/.wh.other", "")),
			Symlink("l", canary)),
		over(accepted("a directory in the place of a link of the layer below",
			map[string]string{"lib": "dir", "lib/new": "file new", "usr/lib/old": "file old"}, Dir("lib"), File("lib/new", "new")),
			Dir("usr"), Dir("usr/lib"), File("usr/lib/old", "old"), Symlink("lib", "usr/lib")),
		accepted("a chain of 30 links", map[string]string{"end/f": "file x"}, chain(30)...),
		refused("a chain of 41 links", chain(41)...),
		refused("a link to itself", Symlink("l", "l"), File("l/f", "x")),
		accepted("a link that dangles is a directory inside",
			map[string]string{"usr/lib/f": "file x"}, Symlink("lib", "/usr/lib"), File("lib/f", "x")),
		{Name: "a link to nothing", Layer: raw(rawHeader("l", tar.TypeSymlink)), Refused: true},
		refused("a link to a name longer than a path can be", Symlink("l", strings.Repeat("long/", 1000))),
		accepted("a link to the kernel's links", map[string]string{"proc/self/root/tmp/f": "file x"},
			Symlink("l", "/proc/self/root"), File("l/tmp/f", "x")),
	}
}

func hardLinks(canary string) []Hostile {
	return []Hostile{
		refused("a hard link to the canary", Link("h", canary+"/file")),
		refused("a hard link that climbs to the canary", Link("h", "../../../../../../../.."+canary+"/file")),
		refused("a hard link to the canary through a link", Symlink("l", canary), Link("h", "l/file")),
		accepted("a hard link to a link to the canary, then a file in its place",
			map[string]string{"h": "file evil", "l": "link " + canary + "/file"},
			Symlink("l", canary+"/file"), Link("h", "l"), File("h", "evil")),
		accepted("a hard link to a link stays a link",
			map[string]string{"h": "link " + canary + "/file"}, Symlink("l", canary+"/file"), Link("h", "l")),
		refused("a hard link to what comes later", Link("h", "f"), File("f", "")),
		refused("a hard link to itself", File("f", ""), Link("f", "f")),
		refused("a hard link to a directory", Dir("d"), Link("h", "d")),
		refused("a hard link to the root", Link("h", "/")),
		refused("a hard link to a whiteout", File(".wh.f", ""), Link("h", ".wh.f")),
		over(accepted("a hard link to a file of the layer below",
			map[string]string{"f": "file x", "h": "file x"}, Link("h", "f")), File("f", "x")),
		over(accepted("a hard link to a file of the layer below that is hidden",
			map[string]string{"f": "", "h": "file x"}, Link("h", "f"), File(".wh.f", "")), File("f", "x")),
	}
}

func whiteouts(canary string) []Hostile {
	below := []Entry{Dir("d"), File("d/a", "1"), Dir("d/s"), File("d/s/b", "2"), File("f", "3"), Symlink("l", "/"+strings.TrimPrefix(canary, "/"))}
	return []Hostile{
		refused("a whiteout of nothing", File(".wh.", "")),
		refused("a whiteout of this", Dir("d"), File("d/.wh..", "")),
		refused("a whiteout of what is above", Dir("d"), File("d/.wh...", "")),
		refused("a whiteout above the root", File("../.wh.etc", "")),
		accepted("a whiteout through a link to the canary", nil, Symlink("l", canary), File("l/.wh.file", "")),
		accepted("an opaque mark through a link to the canary", nil, Symlink("l", path.Dir(canary)), File("l/.wh..wh..opq", "")),
		accepted("housekeeping of AUFS", map[string]string{".wh..wh.plnk": ""}, Dir(".wh..wh.plnk"), File(".wh..wh.aufs", "")),
		over(accepted("whiteouts of files and directories",
			map[string]string{"d": "", "f": "", "l": "link " + canary}, File(".wh.d", ""), File(".wh.f", "")), below...),
		over(accepted("a whiteout of a link to the canary", map[string]string{"l": ""}, File(".wh.l", "")), below...),
		over(accepted("an opaque mark hides what is below and not what comes with it",
			map[string]string{"d/a": "", "d/s/b": "", "d/s/new": "file n", "d/n": "file n", "f": "file 3"},
			Dir("d"), Dir("d/s"), File("d/s/new", "n"), File("d/.wh..wh..opq", ""), File("d/n", "n")), below...),
		over(accepted("an opaque mark in the root",
			map[string]string{"d/a": "", "d": "", "f": "", "n": "file n"}, File(".wh..wh..opq", ""), File("n", "n")), below...),
		over(accepted("a whiteout does not hide what comes with it",
			map[string]string{"d/a": "", "d/n": "file n", "f": "file n"},
			File("d/n", "n"), File(".wh.d", ""), File("f", "n"), File(".wh.f", "")), below...),
		over(accepted("a whiteout of what is not there", map[string]string{"none": "", "d/none": "", "none-at-all": ""},
			File(".wh.none", ""), File("d/.wh.none", ""), File("none-at-all/.wh.x", "")), below...),
		over(accepted("a whiteout, then something else in the place of its directory", map[string]string{"d": "file n", "e": "link /", "d/a": ""},
			Dir("d"), File("d/.wh.a", ""), File("d", "n"), Dir("e"), File("e/.wh..wh..opq", ""), Symlink("e", "/")), below...),
		over(accepted("a whiteout, then the same name anew", map[string]string{"d": "dir", "d/a": "", "d/n": "file n", "f": "dir"},
			File(".wh.d", ""), File(".wh.f", ""), Dir("d"), File("d/n", "n"), Dir("f")), below...),
	}
}

func kinds(canary string) []Hostile {
	x := func(e Entry, kv ...string) Entry {
		e.PAXRecords = make(map[string]string)
		for i := 0; i < len(kv); i += 2 {
			e.PAXRecords["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
		return e
	}
	mode := func(e Entry, m int64) Entry { e.Mode = m; return e }
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return []Hostile{
		accepted("one name as everything in turn", map[string]string{"n": "file last"},
			File("n", "1"), Dir("n"), File("n/below", "2"), Symlink("n", canary), Node("n", tar.TypeFifo, 0, 0),
			Dir("n"), Dir("n/a"), File("n/a/b", ""), Node("n", tar.TypeChar, 1, 3), Link("m", "n"), File("n", "last")),
		accepted("devices and a pipe", map[string]string{"null": "char 1:3", "loop": "block 7:0", "pipe": "pipe"},
			Node("null", tar.TypeChar, 1, 3), Node("loop", tar.TypeBlock, 7, 0), Node("pipe", tar.TypeFifo, 0, 0)),
		refused("a device that overlayfs takes for a whiteout", Node("f", tar.TypeChar, 0, 0)),
		{Name: "a device of a number too large", Layer: raw(rawHeader("f", tar.TypeChar, field{329, "7777777\x00"}, field{337, "7777777\x00"})), Refused: true},
		accepted("attributes of the kernel and of overlayfs",
			map[string]string{"d": "dir user.kept=1", "f": "file  security.capability=" + capability + " user.kept=2"},
			x(Dir("d"), "trusted.overlay.opaque", "y", "user.kept", "1", "user.overlay.opaque", "y", "trusted.gantry.implicit", "y"),
			x(File("f", ""), "security.capability", capability, "user.kept", "2", "trusted.overlay.redirect", "/../..", "trusted.overlay.metacopy", "",
				"security.selinux", "system_u:object_r:etc_t:s0", "security.ima", "x", "trusted.x", "y")),
		refused("an attribute larger than any can be", x(File("f", ""), "user.big", strings.Repeat("x", 100<<10))),
		accepted("a directory that nobody may enter", map[string]string{"d/f": "file x"},
			mode(Dir("d"), 0), mode(File("d/f", "x"), 0), mode(Dir("d/e"), 0), File("d/e/g", "y")),
		accepted("set-user-id", map[string]string{"su": "file x", "d": "dir"}, mode(File("su", "x"), 0o4755), mode(Dir("d"), 0o7777)),
		{Name: "an entry of an unknown type", Layer: raw(rawHeader("f", 'Z')), Refused: true},
		{Name: "a header for all entries", Layer: raw(rawHeader("g", 'g', field{atSize, "00000000015\x00"}), pad([]byte(record("comment", "x"))), rawHeader("f", tar.TypeReg)), Want: map[string]string{"f": "file "}},
	}
}

func headers() []Hostile {
	file := rawHeader("f", tar.TypeReg)
	base256 := func(n int64) string {
		b := make([]byte, 12)
		binary.BigEndian.PutUint64(b[4:], uint64(n))
		b[0] = 0x80
		if n < 0 {
			copy(b, "\xff\xff\xff\xff")
		}
		return string(b)
	}
	broken := bytes.Clone(file)
	broken[0] ^= 1
	far := File("f", "")
	far.ModTime, far.AccessTime = time.Unix(1<<60, 999_999_999), time.Unix(-1<<60, 0)
	return []Hostile{
		refusedRaw("a checksum that is wrong", broken),
		refusedRaw("a size below zero", rawHeader("f", tar.TypeReg, field{atSize, base256(-1)})),
		refusedRaw("a size of 2^63-1", rawHeader("f", tar.TypeReg, field{atSize, base256(math.MaxInt64)})),
		refusedRaw("a size below zero in a record", pax(record("size", "-1")), file),
		refusedRaw("a size past 64 bits in a record", pax(record("size", "99999999999999999999")), file),
		refusedRaw("an owner past 32 bits", pax(record("uid", "4294967296")), file),
		refusedRaw("an owner that means none", pax(record("gid", "4294967295")), file),
		refusedRaw("an owner below zero", pax(record("uid", "-1")), file),
		refusedRaw("a time past 64 bits", pax(record("mtime", "99999999999999999999")), file),
		accepted("times far off", map[string]string{"f": "file "}, far),
		refusedRaw("a record that is none", pax("not a record\n"), file),
		refusedRaw("a record with a wrong length", pax("99 path=x\n"), file),
		refusedRaw("NUL in a name", pax(record("path", "f\x00/../../evil")), file),
		refusedRaw("NUL in a link", pax(record("linkpath", "/etc\x00x")), rawHeader("l", tar.TypeSymlink, field{atLink, "x"})),
		refusedRaw("a header of 2 MiB", pax(record("path", strings.Repeat("x", 2<<20))), file),
		{Name: "two names in records", Layer: raw(pax(record("path", "../evil")+record("path", "good")), file), Want: map[string]string{"good": "file "}},
		refusedRaw("two names in records, the last of which climbs", pax(record("path", "good")+record("path", "../evil")), file),
		{Name: "an archive that ends in a header", Layer: file[:300], Refused: true},
		{Name: "an archive that ends in a file", Layer: append(rawHeader("f", tar.TypeReg, field{atSize, "00000010000\x00"}), make([]byte, 700)...), Refused: true},
		{Name: "an archive of nothing", Layer: nil},
		{Name: "an archive of its end", Layer: raw()},
		{Name: "text in the place of an archive", Layer: bytes.Repeat([]byte("<html>404 not found</html>\n"), 100), Refused: true},
	}
}

func streams() []Hostile {
	layer := Tar(File("f", "x"))
	zip := Gzip(layer)
	wrong := bytes.Clone(zip)
	wrong[len(wrong)-6] ^= 0xff // the checksum
	var members []byte
	for b := layer; len(b) > 0; b = b[min(len(b), 16):] {
		members = append(members, Gzip(b[:min(len(b), 16)])...)
	}
	const gz, zst = ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd
	fine := map[string]string{"f": "file x"}
	giant := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8}, Zstd(layer)[6:]...) // a window of 2^41
	return []Hostile{
		{Name: "gzip of many members", Layer: members, MediaType: gz, Want: fine},
		{Name: "gzip with something after it", Layer: append(bytes.Clone(zip), "trailing"...), MediaType: gz, Refused: true},
		{Name: "gzip that is cut off", Layer: zip[:len(zip)-9], MediaType: gz, Refused: true},
		{Name: "gzip with a wrong checksum", Layer: wrong, MediaType: gz, Refused: true},
		{Name: "gzip in the place of an archive", Layer: zip, Refused: true},
		{Name: "zstd of many frames", Layer: append(Zstd(layer[:1000]), Zstd(layer[1000:])...), MediaType: zst, Want: fine},
		{Name: "zstd after a frame to skip", Layer: append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), Zstd(layer)...), MediaType: zst, Want: fine},
		{Name: "zstd with a giant window", Layer: giant, MediaType: zst, Refused: true},
		{Name: "zstd that is cut off", Layer: Zstd(layer)[:700], MediaType: zst, Refused: true},
		{Name: "a digest that is a lie", Layer: layer, Digest: digest.FromString("something else"), Refused: true},
		{Name: "zeros after the archive", Layer: append(bytes.Clone(layer), make([]byte, 1<<20)...), Want: fine},
		{Name: "something after the archive", Layer: append(bytes.Clone(layer), "trailing"...), Want: fine},
	}
}

func sizes() []Hostile {
	return []Hostile{
		{Name: "a gigabyte of zeros in a megabyte", Layer: zeros(1 << 30), MediaType: ocispec.MediaTypeImageLayerGzip, Slow: true},
		{Name: "a sparse file", Layer: sparse(1<<20, "1\n4096\n512\n"), Want: map[string]string{"s": "file of 1048576"}},
		{Name: "a sparse file of an exabyte", Layer: sparse(1<<60, "1\n0\n512\n"), Refused: true, Slow: true},
		{Name: "a sparse file whose pieces overlap", Layer: sparse(1<<20, "2\n0\n512\n100\n512\n"), Refused: true},
		{Name: "a sparse file of more pieces than it has", Layer: sparse(1<<20, "999999999\n0\n"), Refused: true},
		{Name: "many empty files", Layer: many(5000), MediaType: ocispec.MediaTypeImageLayerGzip},
	}
}

// zeros is an archive of one file of n zeros, compressed: a member for each
// mebibyte, all but the first and the last the same.
func zeros(n int64) []byte {
	const mebibyte = 1 << 20
	head := rawHeader("zeros", tar.TypeReg, field{atSize, fmt.Sprintf("%011o\x00", n)})
	member := Gzip(make([]byte, mebibyte))
	out := Gzip(head)
	for ; n > 0; n -= mebibyte {
		out = append(out, member...)
	}
	return append(out, Gzip(make([]byte, 2*blockSize))...)
}

func many(n int) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i := range n {
		must(w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%03d/f%d", i/1000, i), Typeflag: tar.TypeReg, Mode: 0o644}))
	}
	must(w.Close())
	must(z.Close())
	return b.Bytes()
}

// sparse is an archive of a sparse file of n bytes in the form that has its map
// before its data, of which there are 512 bytes a piece.
func sparse(n int64, pieces string) []byte {
	data := append(pad([]byte(pieces)), make([]byte, blockSize*strings.Count(pieces, "\n512"))...)
	for i := blockSize; i < len(data); i++ {
		data[i] = 'x'
	}
	records := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", "s") + record("GNU.sparse.realsize", fmt.Sprint(n))
	return raw(pax(records), rawHeader("sparse", tar.TypeReg, field{atSize, fmt.Sprintf("%011o\x00", len(data))}), data)
}
