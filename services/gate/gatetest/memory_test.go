package gatetest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/gate"
	"github.com/gantryd/gantry/services/gate/gatetest"
)

func TestMemory(t *testing.T) {
	gatetest.Run(t, func(*testing.T) gatetest.Wall {
		m := gatetest.NewMemory()
		return gatetest.Wall{Asker: m, Serve: func(_ *testing.T, name string, g gate.Gate) func() { return m.Serve(name, g) }}
	})
}
