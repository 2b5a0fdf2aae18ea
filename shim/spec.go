package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// A spec is what we need to know of a bundle's config.json. The rest is between
// who wrote it and the OCI runtime.
type spec struct {
	Process struct {
		Cwd string `json:"cwd"`
	} `json:"process"`
	Hooks struct {
		Poststart []json.RawMessage `json:"poststart"`
	} `json:"hooks"`
}

func readSpec(bundle string) (spec, error) {
	var s spec
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return s, fmt.Errorf("bundle: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("config.json: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	return s, checkCwd(s.Process.Cwd)
}

// checkCwd refuses a working directory below /proc: there are names for
// directories of the host in it, for as long as the OCI runtime has them open
// (CVE-2024-21626).
func checkCwd(cwd string) error {
	if clean := path.Clean("/" + cwd); strings.HasPrefix(clean, "/proc/") {
		return fmt.Errorf("working directory %q is in /proc: %w", cwd, errdefs.ErrInvalidArgument)
	}
	return nil
}

// execSpec returns a process's description that agrees with the request.
func execSpec(b []byte, terminal bool) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, errors.New("it is null")
	}
	for name := range fields {
		// encoding/json, which OCI runtimes read it with, takes any case.
		if name != "cwd" && strings.EqualFold(name, "cwd") || name != "terminal" && strings.EqualFold(name, "terminal") {
			return nil, fmt.Errorf("unknown field %q", name)
		}
	}
	if cwd, ok := fields["cwd"]; ok {
		var s string
		if err := json.Unmarshal(cwd, &s); err != nil {
			return nil, fmt.Errorf("cwd: %w", err)
		}
		if err := checkCwd(s); err != nil {
			return nil, err
		}
	}
	fields["terminal"] = json.RawMessage("false")
	if terminal {
		fields["terminal"] = json.RawMessage("true")
	}
	return json.Marshal(fields)
}
