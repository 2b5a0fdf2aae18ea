package backuptest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/backup/backuptest"
)

func TestMemory(t *testing.T) {
	backuptest.Run(t, func(*testing.T) backuptest.Subject { return backuptest.NewMemory().Subject() })
}
