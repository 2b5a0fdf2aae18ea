package contentd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/fsck"
)

// checkBytes reads the blobs that somebody has and hashes them.
func (c *checking) checkBytes() error {
	if !c.options.Deep && c.only == nil {
		return nil
	}
	all := slices.Sorted(maps.Keys(c.known))
	for _, d := range all {
		c.progress.ObjectsTotal++
		c.progress.BytesTotal += c.known[d]
	}
	pace := fsck.NewPace(c.options.Rate)
	for _, d := range all {
		if err := c.checkBlob(d, pace); err != nil {
			return err
		}
	}
	return nil
}

// checkBlob hashes a blob, and quarantines it if that is wanted and its bytes
// are wrong.
func (c *checking) checkBlob(d digest.Digest, pace *fsck.Pace) error {
	f, err := os.OpenFile(c.path(d), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// Deleted since, or else it is lost.
		c.progress.Objects++
		return c.checkMissing(d, c.known[d])
	}
	if err != nil {
		return kind(err)
	}
	defer f.Close()
	got, err := c.hash(f, d, pace)
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	if errors.Is(err, errEnough) {
		return err
	}
	c.progress.Objects++
	if err == nil && got == d {
		return c.goOn()
	}
	why := fmt.Sprintf("its bytes hash to %s", got)
	if err != nil {
		// What the disk cannot read is as good as wrong.
		why = "its bytes cannot be read: " + err.Error()
	}
	finding := &fsck.Finding{Severity: fsck.Loss, What: "corrupt", ID: d.String(), Where: f.Name(), Why: why}
	refs, err := c.refsOf(d)
	if err != nil {
		return err
	}
	finding.Refs = refs
	if c.options.Repair {
		to, err := c.quarantine(d, f)
		if err != nil {
			return err
		}
		if to == "" {
			return c.goOn() // another file has its place
		}
		finding.Done = "quarantined as " + to + "; it is absent until it is written again"
	}
	return c.say(finding)
}

// hashPart is how many bytes are read at once.
const hashPart = 256 << 10

// hash reads a file from the disk, not from memory where it can, and leaves
// nothing of it there.
func (c *checking) hash(f *os.File, d digest.Digest, pace *fsck.Pace) (digest.Digest, error) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	defer func() { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }()
	h := content.NewHash(d.Algorithm())
	for part := make([]byte, hashPart); ; {
		n, err := f.Read(part)
		h.Write(part[:n])
		c.progress.Bytes += int64(n)
		if err == io.EOF {
			return digest.NewDigest(d.Algorithm(), h), nil
		}
		if err != nil {
			return "", err
		}
		if err := pace.Keep(c.ctx, int64(n), tellEvery, c.goOn); err != nil {
			return "", err
		}
	}
}
