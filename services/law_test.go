package services_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The nouns, without their wires and promises.
const nouns = "services/ident services/idmap services/typed services/mount services/label services/filter services/suite " +
	"services/namespace services/event services/lease services/content services/snapshot services/diff services/activation " +
	"services/unpack services/image services/container services/task services/runner services/gate services/network services/fsck services/backup services/gc "

// What an engine may know: contracts, the mechanisms of the kit that know no
// wire, and libraries that are about disks and kernels.
const engine = nouns + "services/kv services/outbox services/gated services/keep services/detached disks "

// law is which package may import what. A package is judged by the first row
// that matches it. Beside what is named, everybody may import the standard
// library, but for what groups says, and the libraries under "everybody".
//
// Do not add to a row to make a build pass. Move the code, or argue the change
// of policy in its own commit.
var law = []struct{ from, may string }{
	{"services", ""},

	// The vocabulary. Contracts know each other only in this order.
	{"services/ident", ""},
	{"services/idmap", ""},
	{"services/typed", ""},
	{"services/mount", ""},
	{"services/label", ""},
	{"services/filter", ""},
	{"services/suite", ""},
	{"services/fsck", ""},
	{"services/backup", ""},
	{"services/namespace", "services/ident services/label services/filter"},
	{"services/event", "services/ident services/filter"},
	{"services/lease", "services/namespace services/label services/filter"},
	{"services/content", "services/namespace services/label services/filter services/lease"},
	{"services/snapshot", "services/namespace services/label services/filter services/lease services/mount services/idmap"},
	{"services/diff", "services/namespace services/label services/mount services/typed services/content"},
	{"services/activation", "services/namespace services/label services/mount"},
	{"services/unpack", "services/namespace services/snapshot"},
	{"services/image", "services/namespace services/label services/filter services/lease services/content"},
	{"services/container", "services/namespace services/label services/filter services/ident services/typed"},
	{"services/task", "services/namespace services/filter services/ident services/typed services/mount services/container"},
	{"services/runner", "services/mount services/typed services/task"},
	{"services/gate", "services/ident"},
	{"services/network", "services/ident"},
	{"services/gc", "services/lease"},

	// The wire. Only these packages have heard of gRPC, ttrpc or NATS. The
	// shim's end is apart: what it imports, every container pays for.
	{"proto/*/*/*", "grpc"},
	{"services/rpc", "services/namespace services/suite grpc otel metrics"},
	{"services/rpc/rpctest", "services/rpc grpc"},
	{"services/event/eventnats", nouns + "nats"},
	{"services/gate/gatenats", nouns + "nats"},
	{"services/event/eventrpc", nouns + "services/rpc grpc ttrpc otel"},
	{"services/task/shimrpc", nouns + "services/mount/mountrpc ttrpc otel status"},
	{"services/task/shimserve", nouns + "services/mount/mountrpc ttrpc"},
	{"services/content/contentrpc", nouns + "proto/*/*/* services/rpc services/fdpass services/*/*rpc grpc"},
	{"services/*/*rpc", nouns + "proto/*/*/* services/rpc services/*/*rpc grpc"},

	// Promises, and stores in memory that keep them.
	{"services/*/*test", nouns + "services/*/*test cmp"},

	// The kit.
	{"services/kv", "badger"},
	{"services/outbox", "services/event services/kv otel"},
	{"services/gated", "services/kv services/gc"},
	{"services/keep", "services/kv services/backup"},
	{"services/fdpass", ""},
	{"services/detached", "services/idmap"},
	{"services/daemon", "services/rpc services/fdpass services/suite services/suite/suiterpc grpc otel metrics toml systemd process"},

	// The engines. They know disks, kernels and contracts; not wires. A folder
	// within one is a mechanism of its own.
	{"eventbus", engine + "eventbus/* services/event/eventnats nats"},
	{"contentd", engine + "contentd/*"},
	{"snapshotd", engine + "snapshotd/*"},
	{"imaged", engine + "imaged/*"},
	{"taskd", engine + "taskd/*"},
	{"gatewayd", engine},
	{"netd", nouns + "cni"},
	{"dnsd", nouns + "dns"},
	{"eventbus/*", engine + "eventbus/*"},
	{"contentd/*", engine + "contentd/*"},
	{"snapshotd/*", engine + "snapshotd/*"},
	{"imaged/*", engine + "imaged/*"},
	{"taskd/*", engine + "taskd/*"},
	{"shim", nouns + "services/detached disks shim/*"},
	{"shim/*", nouns + "disks shim/*"},

	// The SDK: contracts, and the wires to reach them.
	{"client", nouns + "services/*/*rpc services/event/eventnats services/gate/gatenats services/rpc client/* disks"},
	{"client/clienttest", nouns + "services/*/*test client"},
	{"client/*", nouns + "services/*/*rpc services/event/eventnats services/rpc client/* disks"},

	// A plugin to begin from: what somebody else's needs.
	{"deploy/audit", "client services/event services/daemon"},

	// The process. Only here do flags, signals and exit codes exist.
	{"cmd/containerd-shim-gantry-v1", nouns + "shim services/task/shimserve ttrpc disks process"},
	{"cmd/*", "* grpc ttrpc nats cobra toml otel metrics disks systemd process"},
}

// groups are the libraries that a row names by one word. A library is in the
// first group that has a prefix of it.
var groups = []struct{ name, prefixes string }{
	{"everybody", "github.com/containerd/errdefs github.com/opencontainers/ golang.org/x/sys/ golang.org/x/sync/ github.com/containerd/platforms"},
	{"status", "github.com/containerd/errdefs/pkg/errgrpc google.golang.org/grpc/codes google.golang.org/grpc/status google.golang.org/genproto/googleapis/rpc/status"},
	{"messages", "google.golang.org/protobuf/ google.golang.org/genproto/ github.com/containerd/containerd/api/ github.com/containerd/typeurl/ github.com/containerd/cgroups/v3/cgroup1/stats github.com/containerd/cgroups/v3/cgroup2/stats"},
	{"grpc", "google.golang.org/grpc"},
	{"ttrpc", "github.com/containerd/ttrpc"},
	{"nats", "github.com/nats-io/"},
	{"badger", "github.com/dgraph-io/badger/"},
	{"cni", "github.com/containernetworking/cni/"},
	{"dns", "github.com/miekg/dns"},
	{"metrics", "github.com/prometheus/ github.com/grpc-ecosystem/go-grpc-middleware/"},
	{"grpc", "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/"},
	{"otel", "go.opentelemetry.io/"},
	{"toml", "github.com/pelletier/go-toml/"},
	{"systemd", "github.com/coreos/go-systemd/"},
	{"cobra", "github.com/spf13/cobra github.com/spf13/pflag"},
	{"cmp", "github.com/google/go-cmp/"},
	{"disks", "github.com/klauspost/compress/ github.com/containerd/cgroups/ github.com/containerd/fifo github.com/containerd/console github.com/containerd/go-runc github.com/moby/sys/ golang.org/x/term"},
	{"process", "flag os/signal"},
}

// implied are groups that come with another: who may speak gRPC may name its
// messages and codes.
var implied = map[string][]string{
	"grpc":  {"messages", "status"},
	"ttrpc": {"messages", "status"},
}

// TestImportLaw judges every import of every package, tests apart.
func TestImportLaw(t *testing.T) {
	for _, p := range tree(t) {
		row := slices.IndexFunc(law, func(r struct{ from, may string }) bool { return match(r.from, p.path) })
		if row < 0 {
			t.Errorf("%s: no row of the law is about it", p.path)
			continue
		}
		for _, i := range slices.Sorted(maps.Keys(p.imports)) {
			if !allowed(strings.Fields(law[row].may), i) {
				t.Errorf("%s may not import %s (%s)", p.path, i, p.imports[i])
			}
		}
	}
}

func TestLawHasNoIdleRows(t *testing.T) {
	packages := tree(t)
	for i, r := range law {
		for _, before := range law[:i] {
			if before.from == r.from || !strings.Contains(r.from, "*") && match(before.from, r.from) {
				t.Errorf("row %s is never reached: %s comes before it", r.from, before.from)
			}
		}
		for word := range strings.FieldsSeq(r.may) {
			known := slices.ContainsFunc(groups, func(g struct{ name, prefixes string }) bool { return g.name == word }) ||
				slices.ContainsFunc(law, func(o struct{ from, may string }) bool { return o.from == word }) ||
				slices.ContainsFunc(packages, func(p pkg) bool { return match(word, p.path) })
			if !known && !strings.Contains(word, "*") {
				t.Errorf("row %s: %s is neither a package nor a group", r.from, word)
			}
		}
	}
}

// TestShimStaysSmall holds what a node pays for once per container: the shim
// links no gRPC, no NATS, no database, and no HTTP.
func TestShimStaysSmall(t *testing.T) {
	const shim = "../cmd/containerd-shim-gantry-v1"
	if _, err := os.Stat(shim); err != nil {
		t.Skip("no shim: ", err)
	}
	out, err := exec.Command("go", "list", "-deps", shim).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		for _, no := range []string{"google.golang.org/grpc", "github.com/nats-io/", "github.com/dgraph-io/", "net/http", "github.com/spf13/", module + "/services/rpc", module + "/services/kv"} {
			if dep == no || strings.HasSuffix(no, "/") && strings.HasPrefix(dep, no) {
				t.Errorf("the shim links %s", dep)
			}
		}
	}
}

// allowed says whether a row that names words allows an import.
func allowed(words []string, imported string) bool {
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		return slices.ContainsFunc(words, func(w string) bool { return w == "*" && !isPromise(own) || match(w, own) })
	}
	if imported == module {
		return false
	}
	g := group(imported)
	switch {
	case g == "" && !strings.Contains(strings.Split(imported, "/")[0], "."):
		return true // standard library
	case g == "everybody":
		return true
	}
	return slices.ContainsFunc(words, func(w string) bool { return w == g || slices.Contains(implied[w], g) })
}

// group returns the group of a library. The longest prefix counts.
func group(imported string) string {
	name, longest := "", 0
	for _, g := range groups {
		for prefix := range strings.FieldsSeq(g.prefixes) {
			whole := strings.TrimSuffix(prefix, "/")
			if (imported == whole || strings.HasPrefix(imported, whole+"/")) && len(whole) > longest {
				name, longest = g.name, len(whole)
			}
		}
	}
	return name
}

func isPromise(p string) bool {
	return strings.HasPrefix(p, "services/") && strings.Count(p, "/") == 2 && strings.HasSuffix(p, "test")
}

func match(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

const module = "github.com/gantryd/gantry"

// A pkg is a folder with Go files in it.
type pkg struct {
	path    string            // in the module
	imports map[string]string // of files that are no tests, to one file that has it
	files   []file
}

type file struct {
	name   string // with the folder
	test   bool
	syntax *ast.File
	fset   *token.FileSet
	text   string
}

// tree parses the module. Folders that are modules of their own, and those
// that are not kept, are left out.
func tree(t *testing.T) []pkg {
	t.Helper()
	root := ".."
	var packages []pkg
	err := filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		name := d.Name()
		if dir != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil && dir != root {
			return filepath.SkipDir
		}
		p, err := parseDir(dir)
		if err != nil {
			return err
		}
		if p.path, err = filepath.Rel(root, dir); err == nil && len(p.files) > 0 {
			packages = append(packages, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

func parseDir(dir string) (pkg, error) {
	p := pkg{imports: map[string]string{}}
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return p, err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return p, err
		}
		fset := token.NewFileSet()
		syntax, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return p, err
		}
		f := file{name: name, test: strings.HasSuffix(name, "_test.go"), syntax: syntax, fset: fset, text: string(text)}
		p.files = append(p.files, f)
		for _, i := range syntax.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return p, err
			}
			if !f.test {
				p.imports[imported] = filepath.Base(name)
			}
		}
	}
	return p, nil
}
