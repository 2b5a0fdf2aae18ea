package eventnats

import "strings"

// Covers says whether one of the patterns has everything that subject has. A
// subject may be a pattern itself. Anything that is no subject is covered by
// nothing.
func Covers(patterns []string, subject string) bool {
	for _, p := range patterns {
		if covers(p, subject) {
			return true
		}
	}
	return false
}

// covers is by tokens, as NATS has it: "*" is any one, and ">" at the end is one
// or more.
func covers(pattern, subject string) bool {
	for {
		want, restPattern, morePattern := strings.Cut(pattern, ".")
		got, restSubject, moreSubject := strings.Cut(subject, ".")
		switch {
		case got == "" || got == ">" && moreSubject:
			return false
		case want == ">" && !morePattern:
			return wellFormed(restSubject, moreSubject)
		case got == ">" || want != "*" && want != got:
			return false
		case !morePattern || !moreSubject:
			return morePattern == moreSubject
		}
		pattern, subject = restPattern, restSubject
	}
}

// wellFormed says whether there is nothing behind a token, or tokens.
func wellFormed(rest string, more bool) bool {
	for more {
		var token string
		if token, rest, more = strings.Cut(rest, "."); token == "" || token == ">" && more {
			return false
		}
	}
	return true
}
