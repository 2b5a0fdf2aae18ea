package snapshotd

import (
	"fmt"
	"time"

	"github.com/gantryd/gantry/services/fsck"
)

// stuckTime is how long what was removed may take to be gone from the disk.
const stuckTime = time.Hour

// checkTrash finds what was removed and is still there. Collect tries it again and
// again; why it fails is in the log, and somebody has to do something.
func (c *checking) checkTrash() error {
	all, err := c.trashed()
	if err != nil {
		return err
	}
	for _, t := range all {
		id := fmt.Sprintf("%s/%d", t.Snapshotter, t.id)
		if time.Since(t.Since) < stuckTime || !c.wants(id) {
			continue
		}
		why := "it was removed at " + t.Since.Format(time.RFC3339) + " and is still there; the log says why"
		if _, err := c.driver(t.Snapshotter); err != nil {
			why = "it was removed, and goes when its snapshotter is there again"
		}
		if err := c.say(&fsck.Finding{Severity: fsck.Waste, What: "trash", ID: id, Why: why}); err != nil {
			return err
		}
	}
	return nil
}
