package eventtest_test

import (
	"testing"

	"github.com/gantryd/gantry/services/event"
	"github.com/gantryd/gantry/services/event/eventtest"
)

func TestMemory(t *testing.T) {
	eventtest.Run(t, func(*testing.T) event.Bus { return eventtest.NewMemory() })
}
