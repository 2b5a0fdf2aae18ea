package difftest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/diff/difftest"
)

func TestMemory(t *testing.T) {
	difftest.Run(t, func(_ *testing.T, blobs content.Stores) difftest.Fixture {
		m := difftest.NewMemory(blobs)
		return difftest.Fixture{Services: m, Tree: m.Tree}
	})
}
