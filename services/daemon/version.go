package daemon

import (
	"runtime/debug"
	"strings"
)

// version is set by the build:
//
//	-ldflags "-X github.com/gantryd/gantry/services/daemon.version=0.1.0"
var version string

// Version returns the version of the suite: what the build was given, else the
// module's version, else "0.0.0-devel".
func Version() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return strings.TrimPrefix(b.Main.Version, "v")
	}
	return "0.0.0-devel"
}

// Revision returns the commit that the executable was built from, with "-dirty"
// if files differed from it, or "" if the build did not say.
func Revision() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var revision, dirty string
	for _, s := range b.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision == "" {
		return ""
	}
	return revision + dirty
}
