package eventbus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gantryd/gantry/services/event/eventnats"
)

const (
	storeName   = "jetstream" // of the server's directory; the server's choice
	asidePrefix = "damaged-"

	// asideMax is how many damaged streams are kept: the first, which has the
	// most in it, and the latest.
	asideMax = 3
)

// errDamaged is a stream that cannot be opened and never will be.
var errDamaged = fmt.Errorf("the stream is damaged: %w", errdefs.ErrDataLoss)

// recoverStream opens the stream there is. One that is beyond repair is put
// aside, and a new one made: the outboxes have what it had not taken, and its
// subscribers are told a gap.
func (b *Bus) recoverStream() error {
	if err := b.find(); err != nil {
		return err
	}
	err := b.start()
	if !errors.Is(err, errDamaged) {
		return err
	}
	b.stop()
	b.stream, b.server = nil, nil
	dir, asideErr := b.setAside()
	if asideErr != nil {
		return errors.Join(err, asideErr)
	}
	b.log.Error("the event stream is damaged: it is put aside, and a new one made", "dir", dir, "err", err)
	return b.start()
}

// find notes what there is before the server opens it and changes it.
func (b *Bus) find() (err error) {
	if b.mark, err = loadMark(b.cfg.Root); err != nil {
		b.log.Warn("what the stream should have is not known", "err", err)
	}
	streams, err := filepath.Glob(filepath.Join(b.cfg.Root, storeName, "*", "streams", eventnats.Stream))
	if err != nil || len(streams) == 0 {
		return err
	}
	b.found = true
	// The server believes its index and does not look at what it is of. Without
	// one it reads every message and checks its sum, which takes no longer.
	index := filepath.Join(streams[0], "msgs", "index.db")
	if err := os.Remove(index); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("the stream's index cannot be removed", "err", err)
	}
	if b.mark.Block == "" { // else the server may have been at work since
		b.markBlock()
		b.saveMark()
	}
	return nil
}

// markBlock notes how long the stream is.
func (b *Bus) markBlock() {
	blocks, _ := filepath.Glob(filepath.Join(b.cfg.Root, storeName, "*", "streams", eventnats.Stream, "msgs", "*.blk"))
	if len(blocks) > 0 {
		b.mark.Block = filepath.Base(slices.MaxFunc(blocks, func(x, y string) int { return blockNumber(x) - blockNumber(y) }))
		b.mark.Size = b.blockSize()
	}
}

func blockNumber(name string) int {
	n, _ := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".blk"))
	return n
}

// blockSize returns how long the marked block is now.
func (b *Bus) blockSize() int64 {
	found, _ := filepath.Glob(filepath.Join(b.cfg.Root, storeName, "*", "streams", eventnats.Stream, "msgs", b.mark.Block))
	for _, name := range found {
		if fi, err := os.Lstat(name); err == nil {
			return fi.Size()
		}
	}
	return 0
}

// saveMark saves the mark if it can. A disk that is full does not keep the bus
// from being read.
func (b *Bus) saveMark() {
	if err := b.mark.save(b.cfg.Root); err != nil {
		b.log.Warn("the stream's mark cannot be written", "err", err)
	}
}

// vet looks at what the server made of the stream and returns its epoch, which
// is a new one if its end is missing: cursors of the old would mean other events
// soon. What is missing in its middle every reader sees for itself.
func (b *Bus) vet(have *jetstream.StreamInfo) (epoch string) {
	epoch = have.Config.Metadata[eventnats.Epoch]
	state := have.State
	cut := b.mark.Block != "" && b.blockSize() < b.mark.Size
	if cut || b.mark.Epoch == epoch && state.LastSeq < b.mark.Sequence {
		b.log.Error("the end of the event stream is lost: its subscribers are told a gap",
			"epoch", epoch, "last", state.LastSeq, "mark", b.mark.Sequence, "block", b.mark.Block, "size", b.mark.Size)
		epoch = newEpoch()
	}
	if n := state.LastSeq + 1 - state.FirstSeq; state.Msgs > 0 && state.Msgs != n {
		b.log.Error("events are missing in the stream: its subscribers are told a gap", "count", n-state.Msgs)
	}
	return epoch
}

// vetted notes what the stream has now.
func (b *Bus) vetted(last uint64) {
	b.mark = mark{Epoch: b.epoch, Sequence: last}
	b.saveMark()
}

// markEnd notes what the stream has when its server has stopped.
func (b *Bus) markEnd(last uint64) {
	if b.mark.Epoch == b.epoch && b.epoch != "" {
		b.mark.Sequence = max(b.mark.Sequence, last)
		b.markBlock()
		b.saveMark()
	}
}

// damaged is errDamaged if a stream that does not open is to blame, and not the
// disk that it is on.
func (b *Bus) damaged(why string) error {
	if err := b.writable(); err != nil {
		return fmt.Errorf("%s: %w", why, err)
	}
	return fmt.Errorf("%s: %w", why, errDamaged)
}

// writable tries whether a file can be written here, as a stream has to be.
func (b *Bus) writable() error {
	if n := free(b.cfg.Root); n < freeMin {
		return fmt.Errorf("%d bytes are free and %d are wanted: %w", n, freeMin, errdefs.ErrResourceExhausted)
	}
	return b.mark.save(b.cfg.Root)
}

// setAside moves what the server keeps out of its way and removes earlier ones
// if there are too many.
func (b *Bus) setAside() (string, error) {
	to := filepath.Join(b.cfg.Root, asidePrefix+time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.Rename(filepath.Join(b.cfg.Root, storeName), to); err != nil {
		return "", err
	}
	b.found, b.mark = false, mark{}
	if err := syncDir(b.cfg.Root); err != nil {
		return "", err
	}
	all, err := filepath.Glob(filepath.Join(b.cfg.Root, asidePrefix+"*"))
	if err != nil {
		return "", err
	}
	slices.Sort(all)
	for ; len(all) > asideMax; all = slices.Delete(all, 1, 2) {
		b.log.Warn("an earlier damaged stream is removed", "dir", all[1])
		if err := os.RemoveAll(all[1]); err != nil {
			return "", err
		}
	}
	return to, nil
}
