package contenttest

import (
	"testing"

	"github.com/gantryd/gantry/services/lease"
)

func TestMemory(t *testing.T) {
	Run(t, func(_ *testing.T, leases lease.Registry) Subject {
		m := NewMemory(leases)
		return Subject{Stores: m, Members: m}
	})
}
