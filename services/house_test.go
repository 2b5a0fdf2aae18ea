package services_test

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// engines are the folders whose doc.go is the design of what is in them.
var engines = []string{"contentd", "snapshotd", "imaged", "taskd", "eventbus", "gatewayd", "shim", "netd", "dnsd"}

// headings of an engine's doc.go, in this order. Others may stand between.
var headings = []string{"On disk", "What survives a crash", "Locking", "Limits", "Events", "Needs"}

// emptyNames say nothing of what is in a package or a file.
var emptyNames = []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "core", "types", "model", "manager", "handler", "impl", "internal", "pkg"}

func TestNames(t *testing.T) {
	for _, p := range tree(t) {
		if p.path == "." {
			t.Errorf("%s: no Go files in the root", p.files[0].name)
		}
		for part := range strings.SplitSeq(p.path, "/") {
			if slices.Contains(emptyNames, part) {
				t.Errorf("%s: %q says nothing of what is in it", p.path, part)
			}
		}
		for _, f := range p.files {
			base := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(f.name), ".go"), "_test")
			if slices.Contains(emptyNames, base) {
				t.Errorf("%s: %q says nothing of what is in it", f.name, base)
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for _, p := range tree(t) {
		var docs []string
		generated, tests := false, true
		for _, f := range p.files {
			generated = generated || ast.IsGenerated(f.syntax)
			tests = tests && f.test
			if f.syntax.Doc != nil && !f.test {
				docs = append(docs, filepath.Base(f.name))
			}
		}
		if len(docs) != 1 && !generated && !tests {
			t.Errorf("%s: package comment in %d files %v, want 1", p.path, len(docs), docs)
		}
	}
}

func TestEnginesSayTheirDesign(t *testing.T) {
	for _, e := range engines {
		b, err := os.ReadFile(filepath.Join("..", e, "doc.go"))
		if err != nil {
			t.Errorf("%s: %v", e, err)
			continue
		}
		rest := string(b)
		for _, h := range headings {
			_, after, ok := strings.Cut(rest, "// # "+h+"\n")
			if !ok {
				t.Errorf("%s/doc.go: no heading %q, or not in order", e, h)
				continue
			}
			rest = after
		}
	}
}

func TestNoInitAndNoBlankImport(t *testing.T) {
	eachFile(t, func(f file) {
		if ast.IsGenerated(f.syntax) {
			return
		}
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init", f.at(fn))
			}
		}
		for _, i := range f.syntax.Imports {
			if i.Name != nil && i.Name.Name == "_" && i.Path.Value != `"embed"` {
				t.Errorf("%s: blank import of %s", f.at(i), i.Path.Value)
			}
			if i.Name != nil && i.Name.Name == "." {
				t.Errorf("%s: dot import of %s", f.at(i), i.Path.Value)
			}
		}
	})
}

// banned are functions that production code calls only in the folders named. A
// pattern is as of the law.
var banned = []struct {
	function string
	except   []string
	instead  string
}{
	{"google.golang.org/grpc.NewServer", []string{"services/rpc"}, "rpc.NewServer"},
	{"google.golang.org/grpc.NewClient", []string{"services/rpc"}, "rpc.Dial"},
	{"google.golang.org/grpc.Dial", nil, "rpc.Dial"},
	{"google.golang.org/grpc.DialContext", nil, "rpc.Dial"},
	{"os.Exit", []string{"services/daemon", "cmd/*"}, "an error"},
	{"os.Getenv", []string{"services/daemon", "cmd/*"}, "a field of the config"},
	{"os.LookupEnv", []string{"services/daemon", "cmd/*"}, "a field of the config"},
	{"os.Environ", []string{"services/daemon", "cmd/*"}, "an argument"},
	{"os.Setenv", nil, "an argument"},
	{"os.Unsetenv", []string{"services/daemon", "cmd/*"}, "an argument"},
	{"os.Chdir", []string{"cmd/*"}, "an absolute path"},
	{"log/slog.Default", nil, "an argument"},
	{"log/slog.SetDefault", nil, "an argument"},
	{"log/slog.Info", nil, "a logger"},
	{"log/slog.Warn", nil, "a logger"},
	{"log/slog.Error", nil, "a logger"},
	{"log/slog.Debug", nil, "a logger"},
	{"log.Print", nil, "a logger"},
	{"log.Printf", nil, "a logger"},
	{"log.Println", nil, "a logger"},
	{"log.Fatal", nil, "an error"},
	{"log.Fatalf", nil, "an error"},
	{"fmt.Print", []string{"services/daemon", "cmd/*"}, "a writer"},
	{"fmt.Printf", []string{"services/daemon", "cmd/*"}, "a writer"},
	{"fmt.Println", []string{"services/daemon", "cmd/*"}, "a writer"},
	{"time.Sleep", nil, "a timer and a context"},
	{"time.Tick", nil, "time.NewTicker"},
	{"context.TODO", nil, "the caller's context"},
	{"github.com/prometheus/client_golang/prometheus.MustRegister", nil, "the server's registry"},
}

func TestBannedFunctions(t *testing.T) {
	for _, p := range tree(t) {
		for _, f := range p.files {
			if f.test {
				continue
			}
			names := importNames(f.syntax)
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := sel.X.(*ast.Ident)
				if !ok || names[x.Name] == "" || x.Obj != nil {
					return true
				}
				for _, b := range banned {
					if b.function == names[x.Name]+"."+sel.Sel.Name && !excepted(b.except, p.path) {
						t.Errorf("%s: %s; use %s", f.at(n), b.function, b.instead)
					}
				}
				return true
			})
		}
	}
}

func excepted(folders []string, p string) bool {
	return slices.ContainsFunc(folders, func(pattern string) bool { return match(pattern, p) })
}

// importNames maps the names of a file's imports to their paths.
func importNames(f *ast.File) map[string]string {
	names := map[string]string{}
	for _, i := range f.Imports {
		p := strings.Trim(i.Path.Value, `"`)
		name := p[strings.LastIndex(p, "/")+1:]
		if i.Name != nil {
			name = i.Name.Name
		}
		names[name] = p
	}
	return names
}

var todo = regexp.MustCompile(`(?i)\b(TODO|FIXME|XXX|HACK)\b`)

func TestNothingIsLeftToDo(t *testing.T) {
	eachFile(t, func(f file) {
		for _, group := range f.syntax.Comments {
			for _, c := range group.List {
				if m := todo.FindString(c.Text); m != "" && !ast.IsGenerated(f.syntax) {
					t.Errorf("%s: %s", f.at(c), m)
				}
			}
		}
	})
}

func eachFile(t *testing.T, check func(file)) {
	t.Helper()
	for _, p := range tree(t) {
		for _, f := range p.files {
			check(f)
		}
	}
}

func (f file) at(n ast.Node) string { return f.fset.Position(n.Pos()).String() }
