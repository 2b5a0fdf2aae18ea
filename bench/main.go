// Bench measures gantry beside containerd v2.4.2, in one run on one machine, and
// prints medians and ratios.
//
//	bench run      /bin/true in a new container
//	bench content  blobs: written, read, listed, and what that costs
//	bench unpack   layers unpacked; snapshots prepared, committed, removed, listed
//	bench events   events: published, told to many, and the way of an exit
//
// It needs root, and runc for the suite to start. It installs containerd's own
// binaries with go install into -cache, starts both suites on scratch
// directories and does the same to each in turn, A B A B …, so that a drift of
// the machine's speed meets all alike. It ends what it started.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// containerdVersion is what everything is measured against.
const containerdVersion = "v2.4.2"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	if os.Getuid() != 0 {
		return errors.New("needs root: it starts daemons that mount and run containers")
	}
	if len(args) > 0 {
		switch args[0] {
		case "run":
			return benchRun(ctx, args[1:], out)
		case "content":
			return benchContent(ctx, args[1:], out)
		case "unpack":
			return benchUnpack(ctx, args[1:], out)
		case "events":
			return benchEvents(ctx, args[1:], out)
		}
	}
	return errors.New("usage: bench run|content|unpack|events [flags]; -help after one tells of its flags")
}

// places are where binaries come from.
type places struct {
	bin   string // gantry's
	cache string // containerd's
}

func (p *places) flags(fs *flag.FlagSet) {
	fs.StringVar(&p.bin, "bin", "../bin", "`directory` of gantry's binaries")
	fs.StringVar(&p.cache, "cache", "../.build/containerd-"+containerdVersion, "`directory` for containerd's binaries")
}

// start starts both suites in a new directory. The function it returns ends
// them and removes it.
func (p *places) start(ctx context.Context) (ctd, gan *server, stop func(), err error) {
	for _, dir := range []*string{&p.bin, &p.cache} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, nil, nil, err
		}
	}
	if err := installContainerd(ctx, p.cache); err != nil {
		return nil, nil, nil, err
	}
	scratch, err := os.MkdirTemp("", "gantry-bench-")
	if err != nil {
		return nil, nil, nil, err
	}
	if ctd, err = startContainerd(ctx, p.cache, filepath.Join(scratch, "c")); err != nil {
		os.RemoveAll(scratch)
		return nil, nil, nil, err
	}
	if gan, err = startGantry(ctx, p.bin, filepath.Join(scratch, "g")); err != nil {
		ctd.stop()
		os.RemoveAll(scratch)
		return nil, nil, nil, err
	}
	return ctd, gan, func() {
		gan.stop()
		ctd.stop()
		os.RemoveAll(scratch)
	}, nil
}
