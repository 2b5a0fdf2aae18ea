package activationtest

import (
	"testing"

	"github.com/gantryd/gantry/services/lease"
)

func TestMemory(t *testing.T) {
	Run(t, func(_ *testing.T, leases lease.Registry) Fixture { return NewMemory(leases).Fixture() })
}
