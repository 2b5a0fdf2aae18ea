// Demoimage packs the demo program into an image, an OCI layout in a tar
// archive. The same program makes the same bytes, wherever and whenever.
//
//	demoimage [-o demo.tar] [-name demo:latest] <program>
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	out := flag.String("o", "demo.tar", "write the image to `file`")
	name := flag.String("name", "demo:latest", "`name` of the image")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: demoimage [-o file] [-name name] <program>")
		os.Exit(2)
	}
	if err := run(*out, *name, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "demoimage:", err)
		os.Exit(1)
	}
}

func run(out, name, program string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	// The program knows under which names it is in the image's /bin.
	commands, err := exec.Command(program, "commands").Output()
	if err != nil {
		return fmt.Errorf("%s commands: %w", program, err)
	}
	var archive bytes.Buffer
	if err := pack(&archive, name, b, strings.Fields(string(commands))); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	// Whole or not at all: others may be reading the old one.
	f, err := os.CreateTemp(filepath.Dir(out), ".demo-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(archive.Bytes())
	if err == nil {
		err = f.Chmod(0o644)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}

// pack writes an archive with one image, which has program as one layer.
func pack(w io.Writer, name string, program []byte, commands []string) error {
	plain, err := layer(program, commands)
	if err != nil {
		return err
	}
	var compressed bytes.Buffer
	z, err := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(plain); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	l := layout{w: tar.NewWriter(w)}
	layerBlob := l.blob(ocispec.MediaTypeImageLayerGzip, compressed.Bytes())
	config := l.document(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platform,
		Config: ocispec.ImageConfig{
			Env:        []string{"PATH=/bin"},
			Cmd:        []string{"/bin/hello"},
			WorkingDir: "/",
			StopSignal: "SIGTERM",
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{sum(plain)}},
	})
	manifest := l.document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layerBlob},
	})
	manifest.Platform = &platform
	manifest.Annotations = map[string]string{
		ocispec.AnnotationRefName:  name,
		"io.containerd.image.name": name,
	}
	l.file(ocispec.ImageIndexFile, l.json(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	}))
	l.file(ocispec.ImageLayoutFile, l.json(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
	if l.err != nil {
		return l.err
	}
	return l.w.Close()
}

// layer returns the root file system: the program under each name, and what
// programs expect to be there.
func layer(program []byte, commands []string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	headers := []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/demo", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))},
	}
	for _, c := range commands {
		headers = append(headers, &tar.Header{Name: "bin/" + c, Typeflag: tar.TypeSymlink, Linkname: "demo", Mode: 0o777})
	}
	for _, dir := range []string{"dev/", "etc/", "proc/", "root/", "sys/"} {
		headers = append(headers, &tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755})
	}
	headers = append(headers, &tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777})
	for _, h := range headers {
		h.Format = tar.FormatUSTAR
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Size > 0 {
			if _, err := w.Write(program); err != nil {
				return nil, err
			}
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// A layout is an OCI layout being written. Its first error is kept.
type layout struct {
	w   *tar.Writer
	err error
}

func (l *layout) file(name string, b []byte) {
	if l.err == nil {
		l.err = l.w.WriteHeader(&tar.Header{
			Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b)), Format: tar.FormatUSTAR,
		})
	}
	if l.err == nil {
		_, l.err = l.w.Write(b)
	}
}

func (l *layout) json(v any) []byte {
	b, err := json.Marshal(v)
	if l.err == nil {
		l.err = err
	}
	return b
}

func (l *layout) blob(mediaType string, b []byte) ocispec.Descriptor {
	d := sum(b)
	l.file("blobs/"+d.Algorithm().String()+"/"+d.Encoded(), b)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func sum(b []byte) digest.Digest {
	h := sha256.Sum256(b)
	return digest.NewDigestFromBytes(digest.SHA256, h[:])
}

func (l *layout) document(mediaType string, v any) ocispec.Descriptor {
	return l.blob(mediaType, l.json(v))
}
