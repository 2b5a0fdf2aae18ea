package main

import (
	"math/rand/v2"
)

// Material is bytes as files have them, the same for the same seed: text,
// programs, and some that do not compress.
type material struct {
	r     *rand.Rand
	word  *rand.Zipf
	words [][]byte
	code  [][]byte // pieces that programs repeat
}

func newMaterial(seed uint64) *material {
	m := &material{r: rand.New(rand.NewPCG(seed, 1))}
	const words = 6000
	m.word = rand.NewZipf(m.r, 1.07, 8, words-1)
	for range words {
		w := make([]byte, 2+m.r.IntN(9))
		for i := range w {
			w[i] = "etaoinshrdlucmfwypvbgkjqxz"[min(m.r.IntN(26), m.r.IntN(26))]
		}
		m.words = append(m.words, w)
		c := make([]byte, 2+m.r.IntN(9))
		for i := range c {
			c[i] = byte(min(m.r.IntN(256), m.r.IntN(256)))
		}
		m.code = append(m.code, c)
	}
	return m
}

// body is of a kind that is chosen by chance.
func (m *material) body(n int) []byte {
	switch k := m.r.IntN(20); {
	case k < 10:
		return m.program(n)
	case k < 18:
		return m.text(n)
	}
	return m.noise(make([]byte, n))
}

func (m *material) text(n int) []byte {
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if m.r.IntN(14) == 0 {
			b = m.again(b)
		}
		b = append(b, m.words[m.word.Uint64()]...)
		switch m.r.IntN(12) {
		case 0:
			b = append(b, ".\n    "[:2+m.r.IntN(5)]...)
		case 1:
			b = append(b, ", "...)
		default:
			b = append(b, ' ')
		}
	}
	return b[:n]
}

// program is instructions with addresses in them, between them zeros and names.
func (m *material) program(n int) []byte {
	b := make([]byte, 0, n+128)
	for len(b) < n {
		if m.r.IntN(9) == 0 {
			b = m.again(b)
		}
		switch k := m.r.IntN(100); {
		case k < 70:
			b = append(b, m.code[m.word.Uint64()]...)
		case k < 92:
			b = append(b, byte(m.r.Uint32()), byte(m.r.IntN(32)), 0, 0)
		case k < 97:
			b = append(b, m.words[m.word.Uint64()]...)
			b = append(b, 0)
		default:
			b = append(b, make([]byte, 4+m.r.IntN(60))...)
		}
	}
	return b[:n]
}

// again repeats a part of what came before, as long as such parts often are.
func (m *material) again(b []byte) []byte {
	if len(b) < 100 {
		return b
	}
	at := len(b) - 50 - m.r.IntN(min(len(b)-50, 24<<10))
	return append(b, b[at:min(at+8+int(30*m.r.ExpFloat64()), len(b))]...)
}

func (m *material) noise(b []byte) []byte {
	for i := range b {
		b[i] = byte(m.r.Uint32())
	}
	return b
}
