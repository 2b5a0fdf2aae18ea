package containertest

import (
	"testing"

	"github.com/gantryd/gantry/services/container"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) container.Stores { return NewMemory() })
}
