package kv

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"
)

// A Plain reads JSON that is written one way, by json.Marshal of one type, at an
// eighth of what json.Unmarshal costs: a list reads ten thousand records. It is
// not good from the first byte on that is not so; its reader then leaves the
// whole to package json.
type Plain struct {
	rest []byte
	ok   bool
}

// ReadPlain begins to read p.
func ReadPlain(p []byte) Plain { return Plain{rest: p, ok: utf8.Valid(p)} }

// Done tells whether all was read and as expected.
func (s *Plain) Done() bool { return s.ok && len(s.rest) == 0 }

// Next says whether the text comes next, and goes past it if it does.
func (s *Plain) Next(text string) bool {
	if !s.ok || len(s.rest) < len(text) || string(s.rest[:len(text)]) != text {
		return false
	}
	s.rest = s.rest[len(text):]
	return true
}

// Skip goes past text, which has to come next.
func (s *Plain) Skip(text string) { s.ok = s.Next(text) }

// Number reads a whole number that is not below zero.
func (s *Plain) Number() int64 {
	n := 0
	for n < len(s.rest) && '0' <= s.rest[n] && s.rest[n] <= '9' {
		n++
	}
	v, err := strconv.ParseInt(string(s.rest[:n]), 10, 64)
	s.ok = s.ok && err == nil && (n == 1 || s.rest[0] != '0')
	s.rest = s.rest[n:]
	return v
}

// Text reads a string that has no escape in it.
func (s *Plain) Text() []byte {
	s.Skip(`"`)
	end := bytes.IndexByte(s.rest, '"')
	if s.ok = s.ok && end >= 0; !s.ok {
		return nil
	}
	text := s.rest[:end]
	for _, c := range text {
		if c < ' ' || c == '\\' {
			s.ok = false
		}
	}
	s.rest = s.rest[end+1:]
	return text
}

// Time reads a time.
func (s *Plain) Time() (t time.Time) {
	text := s.Text()
	s.ok = s.ok && t.UnmarshalText(text) == nil
	return t
}

// Pairs reads the strings of an object whose brace is read.
func (s *Plain) Pairs() map[string]string {
	all := make(map[string]string)
	for s.ok && !s.Next(`}`) {
		if len(all) > 0 {
			s.Skip(`,`)
		}
		key := string(s.Text())
		s.Skip(`:`)
		all[key] = string(s.Text())
	}
	return all
}
