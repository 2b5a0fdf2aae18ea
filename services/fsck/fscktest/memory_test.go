package fscktest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/fsck/fscktest"
)

func TestMemory(t *testing.T) {
	fscktest.Run(t, func(*testing.T) fscktest.Subject { return fscktest.NewMemory().Subject() })
}
