package idmap

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParse(t *testing.T) {
	for text, want := range map[string][]Range{
		"0:1000:1":                         {{0, 1000, 1}},
		"0:100000:65536":                   {{0, 100000, 65536}},
		"1000:0:1,0:1:1000":                {{1000, 0, 1}, {0, 1, 1000}},
		"0:0:65536":                        {{0, 0, 65536}},
		"0:4294967294:1":                   {{0, 4294967294, 1}},
		"0:1:4294967294":                   {{0, 1, 4294967294}},
		"0:666:1000,1000:6666:64536":       {{0, 666, 1000}, {1000, 6666, 64536}},
		"0:10:1,1:9:1,4294967294:8:1":      {{0, 10, 1}, {1, 9, 1}, {4294967294, 8, 1}},
		strings.Join(many(rangesMax), ","): nil,
	} {
		m, err := Parse(text, "0:5:1")
		if err != nil {
			t.Errorf("Parse(%.40q): %v", text, err)
			continue
		}
		if want != nil && !slices.Equal(m.UIDs, want) {
			t.Errorf("Parse(%.40q): %v, want %v", text, m.UIDs, want)
		}
		again, rest, err := Take(append(m.Options(), "ro"))
		if err != nil || !reflect.DeepEqual(again, m) || !slices.Equal(rest, []string{"ro"}) {
			t.Errorf("Take of Options of %.40q: %v, %q, %v", text, again, rest, err)
		}
	}
}

// many are ranges of one id each.
func many(n int) (all []string) {
	for i := range n {
		id := string(rune('0'+i/100)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10))
		all = append(all, id+":1"+id+":1")
	}
	return all
}

// hostile are mappings that nobody may have.
var hostile = []string{
	"0", "0:1", "0:1:2:3", ",", "0:1:2,", ",0:1:2", ":", "::", "a:b:c", "0:x:1", " 0:1:1", "0:1:1 ", "0:1:1\n", "0:+1:1",
	"-1:-1:-2", "-0:1:1", "0x0:1:1", "1e3:0:1", "0:1:1;0:2:1", "0:1:1,0", "0:1:1,uidmap=0:0:1",
	"0:1000:0",                    // no ids
	"0:0:4294967295", "0:0:65537", // the host
	"0:4294967295:1", "4294967295:1:1", // no id
	"0:1:4294967295", "1:4294967294:2", // beyond the last id
	"0:4294967296:1", "0:1:4294967296", "0:99999999999999999999:1",
	"0:1000:10,5:2000:10", "0:1000:10,10:1005:10", "0:1000:1,0:1000:1", // shared ids
	"0:1000:10,20:999:2", "0:1:4294967294,4294967294:5:1",
	"1:1000:10", "666:666:666", // no root
	strings.Join(many(rangesMax+1), ","),
	strings.Repeat("0", textMax) + ":1:1",
}

func TestHostileMappingsAreInvalid(t *testing.T) {
	for _, text := range hostile {
		for _, pair := range [][2]string{{text, "0:1:1"}, {"0:1:1", text}, {text, text}} {
			if m, err := Parse(pair[0], pair[1]); !errors.Is(err, errdefs.ErrInvalidArgument) || !m.IsZero() {
				t.Errorf("Parse(%.40q, %.40q): %v, %v", pair[0], pair[1], m, err)
			}
		}
	}
	for _, pair := range [][2]string{{"", "0:1:1"}, {"0:1:1", ""}} {
		if _, err := Parse(pair[0], pair[1]); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Parse(%q, %q): %v", pair[0], pair[1], err)
		}
	}
}

func TestRoot(t *testing.T) {
	m, err := Parse("1:7:1,0:1000:1", "0:2000:5")
	if uid, gid := m.Root(); uid != 1000 || gid != 2000 || err != nil {
		t.Errorf("Root: %d, %d, %v", uid, gid, err)
	}
	if m, err := Parse("", ""); !m.IsZero() || err != nil || m.Options() != nil {
		t.Errorf("Parse of nothing: %v, %v", m, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range hostile {
		f.Add(text, "0:1:1")
	}
	f.Add("0:100000:65536", "0:100000:65536")
	f.Fuzz(func(t *testing.T, uids, gids string) {
		m, err := Parse(uids, gids)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("Parse(%q, %q): %v", uids, gids, err)
			}
			return
		}
		again, rest, err := Take(m.Options())
		if err != nil || len(rest) > 0 || !reflect.DeepEqual(again, m) {
			t.Fatalf("Take of what Parse(%q, %q) makes: %v, %q, %v", uids, gids, again, rest, err)
		}
	})
}
