package difftest

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// Random returns layers that fit on each other, the lowest first: the same for
// the same seed. They have files of every type that a layer can say, in place of
// others, and with everything that is said of a file.
func Random(seed uint64, layers int) [][]byte {
	g := &generator{r: rand.New(rand.NewPCG(seed, seed)), tree: make(map[string]tar.Header)}
	all := make([][]byte, layers)
	for i := range all {
		all[i] = g.layer(10 + g.r.IntN(40))
	}
	return all
}

// A generator knows the tree that its layers make.
type generator struct {
	r    *rand.Rand
	tree map[string]tar.Header // by path

	touched map[string]bool // by the layer that is being made
	entries []Entry
}

// randomNames are few, so that they are used again.
var randomNames = []string{
	"a", "b", "c", "usr", "bin", "etc", "new\nline", "ünï cødé", " ", "-rf", "\xff\xfe", "..x", ".hidden", `back\slash`,
	strings.Repeat("n", 251), strings.Repeat("y", 120),
}

func (g *generator) layer(n int) []byte {
	g.touched, g.entries = make(map[string]bool), nil
	for range n {
		switch g.r.IntN(10) {
		case 0:
			g.remove()
		case 1:
			g.opaque()
		case 2:
			g.link()
		case 3, 4:
			if p := g.pick(false); p != "" {
				g.make(p)
			}
		default:
			p := path.Join(g.pick(true), randomNames[g.r.IntN(len(randomNames))])
			if strings.Count(p, "/") < 6 {
				g.make(p)
			}
		}
	}
	return Tar(g.entries...)
}

// pick returns a path of the tree, or of a directory of it, "" being the root.
func (g *generator) pick(dir bool) string {
	var all []string
	if dir {
		all = append(all, "")
	}
	for p, h := range g.tree {
		if !dir || h.Typeflag == tar.TypeDir {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return all[g.r.IntN(len(all))]
}

// free tells whether the layer has said nothing yet of a path and what is in it.
func (g *generator) free(p string) bool {
	for t := range g.touched {
		if t == p || strings.HasPrefix(t, p+"/") {
			return false
		}
	}
	return true
}

// drop forgets what is in a path, and the path.
func (g *generator) drop(p string) {
	delete(g.tree, p)
	for t := range g.tree {
		if strings.HasPrefix(t, p+"/") {
			delete(g.tree, t)
		}
	}
}

// add appends an entry, after the directories that it is in.
func (g *generator) add(p string, e Entry) {
	for i, c := range p {
		if dir := p[:i]; c == '/' && !g.touched[dir] {
			g.touched[dir] = true
			g.entries = append(g.entries, Entry{Header: g.tree[dir]})
		}
	}
	g.entries = append(g.entries, e)
}

// make puts something in a place.
func (g *generator) make(p string) {
	if !g.free(p) {
		return
	}
	e := Entry{Header: tar.Header{Name: p, Typeflag: tar.TypeReg}}
	switch g.r.IntN(12) {
	case 0, 1, 2, 3:
		e.Typeflag, e.Name = tar.TypeDir, p+"/"
	case 4:
		e.Typeflag = tar.TypeSymlink
		e.Linkname = []string{"a", "/etc/passwd", "../../..", strings.Repeat("t", 300)}[g.r.IntN(4)]
	case 5:
		e.Typeflag = []byte{tar.TypeFifo, tar.TypeChar, tar.TypeBlock}[g.r.IntN(3)]
		if e.Typeflag != tar.TypeFifo {
			e.Devmajor, e.Devminor = 1+g.r.Int64N(300), g.r.Int64N(70_000)
		}
	default:
		e.Body = strings.Repeat(fmt.Sprint(g.r.IntN(1000)), g.r.IntN(2)*g.r.IntN(30_000))
	}
	g.looks(&e)
	if e.Typeflag != tar.TypeDir || g.tree[p].Typeflag != tar.TypeDir {
		g.drop(p)
	}
	g.add(p, e)
	g.touched[p], g.tree[p] = true, e.Header
}

// looks gives an entry all that there is beside contents.
func (g *generator) looks(e *Entry) {
	e.Mode = []int64{0o644, 0o755, 0o4755, 0o2775, 0o1777, 0o600, 0o400}[g.r.IntN(7)]
	if e.Typeflag == tar.TypeSymlink {
		e.Mode = 0o777
	}
	e.Uid = []int{0, 0, 1000, 100_000, 3_000_000}[g.r.IntN(5)]
	e.Gid = g.r.IntN(3) * 500
	e.ModTime = time.Unix(g.r.Int64N(2_000_000_000), g.r.Int64N(2)*g.r.Int64N(1_000_000_000))
	e.Format = tar.FormatPAX
	if e.Typeflag != tar.TypeDir && e.Typeflag != tar.TypeReg || g.r.IntN(4) > 0 {
		return
	}
	e.PAXRecords = map[string]string{"SCHILY.xattr.user.test": fmt.Sprintf("\x00binary\xff%d", g.r.IntN(1000))}
	if e.Typeflag == tar.TypeReg && g.r.IntN(2) == 0 {
		e.PAXRecords["SCHILY.xattr.security.capability"] = "\x01\x00\x00\x02" + string(rune(g.r.IntN(8))) + strings.Repeat("\x00", 15)
	}
}

// link makes another name of a file of the same layer.
func (g *generator) link() {
	var files []string
	for _, e := range g.entries {
		if e.Typeflag == tar.TypeReg && g.tree[e.Name].Typeflag == tar.TypeReg && g.touched[e.Name] {
			files = append(files, e.Name)
		}
	}
	p := path.Join(g.pick(true), randomNames[g.r.IntN(len(randomNames))])
	if len(files) == 0 || !g.free(p) {
		return
	}
	target := files[g.r.IntN(len(files))]
	e := Entry{Header: g.tree[target]}
	e.Name, e.Typeflag, e.Linkname, e.Size = p, tar.TypeLink, target, 0
	g.drop(p)
	g.add(p, e)
	g.touched[p], g.tree[p] = true, e.Header
}

// remove hides something of the layers below.
func (g *generator) remove() {
	p := g.pick(false)
	if p == "" || !g.free(p) {
		return
	}
	dir, base := path.Split(p)
	g.drop(p)
	g.add(p, File(dir+".wh."+base, ""))
	g.touched[p] = true
}

// opaque hides all that a directory has in the layers below.
func (g *generator) opaque() {
	p := g.pick(true)
	h, ok := g.tree[p]
	if !ok || !g.free(p) {
		return
	}
	g.drop(p)
	g.tree[p] = h
	g.add(p, Entry{Header: h})
	g.touched[p] = true
	g.add(p, File(p+"/.wh..wh..opq", ""))
}
