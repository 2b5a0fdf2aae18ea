package tasktest

import (
	"testing"

	"github.com/gantryd/gantry/services/container/containertest"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) Node {
		containers := containertest.NewMemory()
		return Node{Tasks: NewMemory(containers, DefaultPrograms()), Containers: containers}
	})
}
