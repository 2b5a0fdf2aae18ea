package unpacktest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/unpack/unpacktest"
)

func TestMemory(t *testing.T) {
	unpacktest.Run(t, func(_ *testing.T, n unpacktest.Node) unpacktest.Fixture {
		return unpacktest.NewMemory(n.Blobs, n.Leases).Fixture()
	})
}
