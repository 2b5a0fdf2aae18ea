package activation

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/services/mount"
)

// expandMax is how many bytes a text is at most when it is filled in. All of a
// mount are together at most textMax.
const expandMax = 64 << 10

// Expand applies [Format]: it fills in the source, the target and the options of
// a mount with what is known of those made before it. In a text,
//
//	{{ source 0 }}     is the source of the first of them,
//	{{ target 0 }}     its target,
//	{{ mount 0 }}      where it is mounted,
//	{{ overlay 0 2 }}  where the first three are, with colons between them;
//	                   {{ overlay 2 0 }} is the other way round.
//
// These are the only expressions, though they look like those of a language
// that has more: whoever describes mounts is to have no language to run here.
// Anything else in braces, a number of a mount that there is not, a text longer
// than 64 KiB, and more than a MiB in all are [errdefs.ErrInvalidArgument].
func Expand(m mount.Mount, made []Active) (mount.Mount, error) {
	var err error
	size := 0
	fill := func(s string) string {
		if err != nil || !strings.Contains(s, open) {
			return s
		}
		s, err = expand(s, made)
		if size += len(s); err == nil && size > textMax {
			err = fmt.Errorf("templates of a mount become longer than %d bytes: %w", textMax, errdefs.ErrInvalidArgument)
		}
		return s
	}
	m.Source, m.Target = fill(m.Source), fill(m.Target)
	var options []string
	for _, o := range m.Options {
		options = append(options, fill(o))
	}
	m.Options = options
	return m, err
}

const open, end = "{{", "}}"

func expand(s string, made []Active) (string, error) {
	var b strings.Builder
	for {
		text, rest, more := strings.Cut(s, open)
		b.WriteString(text)
		if !more {
			break
		}
		expression, after, ok := strings.Cut(rest, end)
		if !ok {
			return "", fmt.Errorf("template %.100q: no %s: %w", s, end, errdefs.ErrInvalidArgument)
		}
		value, err := evaluate(expression, made)
		if err != nil {
			return "", fmt.Errorf("template %.100q: %w", expression, err)
		}
		b.WriteString(value)
		s = after
		if b.Len() > expandMax {
			break
		}
	}
	if b.Len() > expandMax {
		return "", fmt.Errorf("template becomes longer than %d bytes: %w", expandMax, errdefs.ErrInvalidArgument)
	}
	return b.String(), nil
}

// evaluate computes a function of one or two numbers.
func evaluate(expression string, made []Active) (string, error) {
	words := strings.Fields(expression)
	var numbers []int
	for _, w := range words[min(1, len(words)):] {
		n, err := strconv.ParseUint(w, 10, 8)
		if err != nil || int(n) >= len(made) {
			return "", fmt.Errorf("%.20q is not one of %d mounts: %w", w, len(made), errdefs.ErrInvalidArgument)
		}
		numbers = append(numbers, int(n))
	}
	switch {
	case len(numbers) == 1 && words[0] == "source":
		return made[numbers[0]].Source, nil
	case len(numbers) == 1 && words[0] == "target":
		return made[numbers[0]].Target, nil
	case len(numbers) == 1 && words[0] == "mount":
		return made[numbers[0]].MountPoint, nil
	case len(numbers) == 2 && words[0] == "overlay":
		return points(made, numbers[0], numbers[1]), nil
	}
	return "", fmt.Errorf("no such expression: %w", errdefs.ErrInvalidArgument)
}

// points are the mount points from one to another, both included.
func points(made []Active, from, to int) string {
	step := 1
	if from > to {
		step = -1
	}
	dirs := []string{made[from].MountPoint}
	for i := from; i != to; {
		i += step
		dirs = append(dirs, made[i].MountPoint)
	}
	return strings.Join(dirs, ":")
}
