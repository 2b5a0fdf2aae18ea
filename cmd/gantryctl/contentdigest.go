package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/services/content"
)

// Limits of digests that are cut short.
const (
	digitsMin     = 8
	candidatesMax = 4 // that are shown
)

// shortDigest is a digest cut short, with or without its algorithm.
var shortDigest = regexp.MustCompile(`^(?:([a-z0-9]+):)?([0-9a-f]+)$`)

// findBlob returns the digest that an argument says whole or cut short. One that
// is cut short is [errdefs.ErrNotFound] if no blob begins with it, and
// [errdefs.ErrInvalidArgument] if several do.
func findBlob(ctx context.Context, blobs content.Blobs, arg string) (digest.Digest, error) {
	if d := digest.Digest(arg); content.CheckDigest(d) == nil {
		return d, nil
	}
	m := shortDigest.FindStringSubmatch(arg)
	switch {
	case m == nil:
		return "", fmt.Errorf("%q is no digest, nor the begin of one; gantryctl content ls lists them: %w", arg, errdefs.ErrInvalidArgument)
	case len(m[2]) < digitsMin:
		return "", fmt.Errorf("%q has %d digits of a digest, and at least %d are needed: %w", arg, len(m[2]), digitsMin, errdefs.ErrInvalidArgument)
	}
	var found []digest.Digest
	for info, err := range blobs.List(ctx, beginsWith(m[1], m[2])) {
		if err != nil {
			return "", err
		}
		if found = append(found, info.Digest); len(found) > candidatesMax {
			break
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("blob %s: %w", arg, errdefs.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s is ambiguous, give more of it: %s: %w", arg, candidates(found), errdefs.ErrInvalidArgument)
}

// beginsWith is a filter for the blobs whose digest begins with digits.
func beginsWith(algorithm, digits string) string {
	if algorithm == "" {
		algorithm = "[a-z0-9]+"
	}
	return "digest~=" + strconv.Quote("^"+algorithm+":"+digits)
}

func candidates(found []digest.Digest) string {
	var names []string
	for _, d := range found[:min(len(found), candidatesMax)] {
		names = append(names, d.String())
	}
	if len(found) > candidatesMax {
		names = append(names, "…")
	}
	return strings.Join(names, ", ")
}

// eachBlob calls f with the digest of every argument, also when it failed with
// one before.
func (n *node) eachBlob(c *cobra.Command, args []string, f func(d digest.Digest) error) error {
	return each(args, func(arg string) error { return n.withBlob(c, arg, f) })
}

// withBlob calls f with the digest of an argument, and says of an error what to
// do about it.
func (n *node) withBlob(c *cobra.Command, arg string, f func(d digest.Digest) error) error {
	d, err := findBlob(c.Context(), n.blobs(), arg)
	if err == nil {
		err = f(d)
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("%w; gantryctl -n %s content ls lists what there is", err, n.namespace)
	}
	return err
}

// completionsMax is how many digests a shell is offered.
const completionsMax = 500

// completeBlobs offers the digests that begin with what was typed.
func (n *node) completeBlobs(c *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return n.complete(c, func(ctx context.Context) (names []string, err error) {
		var filters []string
		m := shortDigest.FindStringSubmatch(word)
		if m != nil {
			filters = []string{beginsWith(m[1], m[2])}
		}
		for info, err := range n.blobs().List(ctx, filters...) {
			if err != nil {
				return nil, err
			}
			name := info.Digest.String()
			if m != nil && m[1] == "" {
				name = info.Digest.Encoded()
			}
			if names = append(names, name); len(names) == completionsMax {
				break
			}
		}
		return names, nil
	})
}

// completeBlob offers digests for the first argument and nothing for others.
func (n *node) completeBlob(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return n.completeBlobs(c, args, word)
}
