package contenttest

import (
	"testing"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/lease"
)

func TestMemory(t *testing.T) {
	Run(t, func(_ *testing.T, leases lease.Registry) Subject {
		m := NewMemory(leases)
		return Subject{Stores: m, Members: m}
	})
}

func TestIsolatedMemory(t *testing.T) {
	RunIsolated(t, func(_ *testing.T, leases lease.Registry, namespaces content.Namespaces) Subject {
		m := NewIsolated(leases, namespaces)
		return Subject{Stores: m, Members: m}
	})
}
