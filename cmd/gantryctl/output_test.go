package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func TestAStreamIsTheSameJSONAsAList(t *testing.T) {
	rows := []putRow{{Digest: "sha256:a", Size: 1}, {Digest: "sha256:<b>", Existed: true}}
	for n := range len(rows) + 1 {
		var list, streamed bytes.Buffer
		if err := show(&list, "json", nil, rows[:n], nil); err != nil {
			t.Fatal(err)
		}
		all := func(yield func(putRow, error) bool) {
			for _, r := range rows[:n] {
				if !yield(r, nil) {
					return
				}
			}
		}
		if err := stream(&streamed, "json", "", all, nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(list.String(), streamed.String()); diff != "" {
			t.Errorf("%d rows (-list +stream):\n%s", n, diff)
		}
		broken := errors.New("broken")
		streamed.Reset()
		err := stream(&streamed, "json", "", func(yield func(putRow, error) bool) {
			all(yield)
			yield(putRow{}, broken)
		}, nil)
		if !errors.Is(err, broken) || streamed.String() != list.String() {
			t.Errorf("%d rows and an error: %v, %s", n, err, &streamed)
		}
	}
}

// TestManyBlobsAreListedAsTheyCome holds that a list is printed before it ends.
func TestManyBlobsAreListedAsTheyCome(t *testing.T) {
	var out bytes.Buffer
	printed := false
	err := stream(&out, "table", "DIGEST", func(yield func(blobRow, error) bool) {
		for range 10_000 {
			if !yield(blobRow{Digest: digest.FromString("x")}, nil) {
				return
			}
		}
		printed = out.Len() > 0
	}, func(r blobRow) string { return r.line(71, r.Digest.String(), time.Now(), nil) })
	if err != nil || !printed || strings.Count(out.String(), "\n") != 10_001 {
		t.Errorf("it printed early: %t; %d lines, %v", printed, strings.Count(out.String(), "\n"), err)
	}
}
