package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/gantryd/gantry/contentd"
	"github.com/gantryd/gantry/eventbus"
	"github.com/gantryd/gantry/gatewayd"
	"github.com/gantryd/gantry/imaged"
	"github.com/gantryd/gantry/services/daemon"
	"github.com/gantryd/gantry/services/suite"
	"github.com/gantryd/gantry/snapshotd"
	"github.com/gantryd/gantry/taskd"
)

// TestConfigFilesShowEveryDefault reads each file in deploy/config into an
// empty config: what it does not say, or says otherwise, differs.
func TestConfigFilesShowEveryDefault(t *testing.T) {
	for name, want := range map[string]any{
		suite.Contentd:  contentdConfig{daemon.Default(), contentd.Default()},
		suite.Snapshotd: snapshotdConfig{daemon.Default(), snapshotd.Default()},
		suite.Imaged:    imagedConfig{daemon.Default(), imaged.Default()},
		suite.Taskd:     taskdConfig{daemon.Default(), taskd.Default()},
		suite.Eventbus:  eventbusConfig{daemon.Default(), eventbus.Default(), suite.Address},
		suite.Gatewayd:  gatewaydConfig{daemon.Default(), gatewayd.Default()},
	} {
		b, err := os.ReadFile(filepath.Join("../../deploy/config", name+".toml"))
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(want))
		if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(got.Interface()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		// A list that is there and empty is as good as none.
		if g, ok := reflect.TypeAssert[*gatewaydConfig](got); ok && len(g.Also) == 0 {
			g.Also = nil
		}
		if diff := cmp.Diff(want, got.Elem().Interface()); diff != "" {
			t.Errorf("%s (-default +file):\n%s", name, diff)
		}
	}
}
