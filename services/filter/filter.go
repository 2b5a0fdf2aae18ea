// Package filter reads and matches the filters that clients send with lists and
// subscriptions. The grammar is containerd's:
//
//	filter    = selector *( "," selector )        every selector matches
//	selector  = fieldpath [ operator value ]      without operator: is there
//	fieldpath = field *( "." field )              a field may be quoted
//	operator  = "==" | "!=" | "~="
//	value     = word | quoted                     after ~= also /re/ and |re|
//
// White space between tokens is skipped. Quoted text is Go's.
package filter

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// An Adaptor reads one field of the object that is matched.
type Adaptor func(path []string) (value string, present bool)

// A Filter is alternatives, each of which is a conjunction. The zero Filter
// matches everything.
type Filter struct {
	any [][]selector
}

type selector struct {
	path  []string
	op    string // "", "==", "!=" or "~="
	value string
	re    *regexp.Regexp // of "~="; nil if it does not compile
}

// Parse reads filters, of which one has to match. No filter, and an empty one,
// match everything. A syntax error is [errdefs.ErrInvalidArgument]; a regular
// expression that does not compile is none, and matches nothing.
func Parse(filters ...string) (Filter, error) {
	var f Filter
	all := len(filters) == 0
	for _, s := range filters {
		if strings.TrimSpace(s) == "" {
			all = true
			continue
		}
		p := parser{rest: s, whole: s}
		sel, err := p.selectors()
		if err != nil {
			return Filter{}, err
		}
		f.any = append(f.any, sel)
	}
	if all {
		return Filter{}, nil
	}
	return f, nil
}

// Match reports whether the object that a reads matches.
func (f Filter) Match(a Adaptor) bool {
	if len(f.any) == 0 {
		return true
	}
	for _, sel := range f.any {
		if matchAll(sel, a) {
			return true
		}
	}
	return false
}

func matchAll(sel []selector, a Adaptor) bool {
	for _, s := range sel {
		v, ok := a(s.path)
		switch s.op {
		case "":
			if !ok {
				return false
			}
		case "==":
			if !ok || v != s.value {
				return false
			}
		case "!=":
			// A missing field compares as "", so that it differs from
			// every value but that.
			if v == s.value {
				return false
			}
		case "~=":
			if s.re == nil || !s.re.MatchString(v) {
				return false
			}
		}
	}
	return true
}

// Labels reads the path below "labels" from m. The path is put together again:
// keys of labels have dots.
func Labels(m map[string]string, path []string) (string, bool) {
	v, ok := m[strings.Join(path, ".")]
	return v, ok
}

type parser struct {
	rest  string
	whole string
}

func (p *parser) selectors() ([]selector, error) {
	var all []selector
	for {
		s, err := p.selector()
		if err != nil {
			return nil, err
		}
		all = append(all, s)
		p.space()
		if p.rest == "" {
			return all, nil
		}
		if p.rest[0] != ',' {
			return nil, p.fail("want a comma or the end")
		}
		p.rest = p.rest[1:]
	}
}

func (p *parser) selector() (selector, error) {
	var s selector
	for {
		p.space()
		f, err := p.field()
		if err != nil {
			return s, err
		}
		s.path = append(s.path, f)
		p.space()
		if !strings.HasPrefix(p.rest, ".") {
			break
		}
		p.rest = p.rest[1:]
	}
	if len(p.rest) < 2 || !strings.Contains("== != ~=", p.rest[:2]) || p.rest[1] != '=' {
		return s, nil
	}
	s.op, p.rest = p.rest[:2], p.rest[2:]
	p.space()
	var err error
	if s.value, err = p.value(s.op == "~="); err != nil {
		return s, err
	}
	if s.op == "~=" {
		// containerd compiles when it matches, and takes an expression
		// that does not compile for one that does not match.
		s.re, _ = regexp.Compile(s.value)
	}
	return s, nil
}

func (p *parser) field() (string, error) {
	if strings.HasPrefix(p.rest, `"`) {
		return p.quoted()
	}
	n := 0
	for n < len(p.rest) && isField(p.rest[n]) {
		n++
	}
	if n == 0 {
		return "", p.fail("want a field")
	}
	f := p.rest[:n]
	p.rest = p.rest[n:]
	return f, nil
}

func isField(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (p *parser) value(expression bool) (string, error) {
	switch {
	case p.rest == "":
		return "", p.fail("want a value")
	case p.rest[0] == '"':
		return p.quoted()
	case expression && (p.rest[0] == '/' || p.rest[0] == '|'):
		return p.delimited()
	}
	n := 0
	for n < len(p.rest) {
		r, w := utf8.DecodeRuneInString(p.rest[n:])
		if r == utf8.RuneError && w <= 1 || r == ',' || unicode.IsSpace(r) || !unicode.IsGraphic(r) {
			break
		}
		n += w
	}
	// What could open another token does not open a word.
	if n == 0 || strings.ContainsRune(".=!~/|", rune(p.rest[0])) {
		return "", p.fail("want a value")
	}
	v := p.rest[:n]
	p.rest = p.rest[n:]
	return v, nil
}

func (p *parser) quoted() (string, error) {
	q, err := strconv.QuotedPrefix(p.rest)
	if err != nil {
		return "", p.fail("quoted text does not end")
	}
	v, err := strconv.Unquote(q)
	if err != nil {
		return "", p.fail("quoted text is malformed")
	}
	p.rest = p.rest[len(q):]
	return v, nil
}

// delimited reads an expression between two slashes or two bars. A backslash
// before the delimiter keeps it; any other is the expression's own.
func (p *parser) delimited() (string, error) {
	end := p.rest[0]
	var v strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '\\' && i+1 < len(p.rest):
			i++
			if p.rest[i] != end {
				v.WriteByte('\\')
			}
			v.WriteByte(p.rest[i])
		case c == end:
			p.rest = p.rest[i+1:]
			return v.String(), nil
		default:
			v.WriteByte(c)
		}
	}
	return "", p.fail("expression does not end")
}

func (p *parser) space() { p.rest = strings.TrimLeftFunc(p.rest, unicode.IsSpace) }

func (p *parser) fail(what string) error {
	return fmt.Errorf("filter %q at %d: %s: %w", p.whole, len(p.whole)-len(p.rest), what, errdefs.ErrInvalidArgument)
}
