package main

import (
	"bytes"
	"testing"
)

func TestPackIsReproducible(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := pack(w, "demo:latest", []byte("program"), []string{"sh", "true"}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of one program differ")
	}
}
