package contentd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/services/content"
	"github.com/gantryd/gantry/services/namespace"
	"github.com/gantryd/gantry/services/rpc"
)

const (
	megabyte = 1 << 20
	toStat   = api.WriteAction_STAT
	toWrite  = api.WriteAction_WRITE
	toCommit = api.WriteAction_COMMIT
)

// write sends messages, each after the answer to the one before, and returns the
// last answer or the first error.
func (s *site) write(ctx context.Context, all ...*api.WriteContentRequest) (resp *api.WriteContentResponse, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.api.Write(ctx)
	if err != nil {
		return nil, err
	}
	for _, req := range all {
		if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if resp, err = stream.Recv(); err != nil {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	// The ref is free when the stream has ended.
	if _, err := stream.Recv(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return resp, nil
}

// read drains a read.
func (s *site) read(ctx context.Context, req *api.ReadContentRequest) error {
	stream, err := s.api.Read(ctx, req)
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *site) list(ctx context.Context, filters ...string) error {
	stream, err := s.api.List(ctx, &api.ListContentRequest{Filters: filters})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// digests that are none.
var noDigests = []string{
	"", "x", "sha256:", "sha256:abc", "sha256", ":" + strings.Repeat("a", 64), "md5:" + strings.Repeat("a", 32),
	"sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("a", 65), "sha512:" + strings.Repeat("a", 64),
	"sha256:../../../../../../../../../../../../../../../../etc/shadow", "sha256:" + strings.Repeat("a", 63) + "\x00",
	"sha256:" + strings.Repeat("a", 63) + "\n", "../blobs/sha256:" + strings.Repeat("a", 64),
	strings.Repeat("a", megabyte), "sha256:" + strings.Repeat("a", megabyte),
}

func TestWhatIsNoDigestIsRefusedByEveryCall(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	for _, d := range noDigests {
		_, err := s.api.Info(ctx, &api.InfoRequest{Digest: d})
		wantKind(t, "Info", err, errdefs.ErrInvalidArgument)
		wantShort(t, "Info", err)
		_, err = s.api.Update(ctx, &api.UpdateRequest{Info: &api.Info{Digest: d}})
		wantKind(t, "Update", err, errdefs.ErrInvalidArgument)
		_, err = s.api.Delete(ctx, &api.DeleteContentRequest{Digest: d})
		wantKind(t, "Delete", err, errdefs.ErrInvalidArgument)
		wantKind(t, "Read", s.read(ctx, &api.ReadContentRequest{Digest: d}), errdefs.ErrInvalidArgument)
		if d == "" {
			continue // says nothing
		}
		for _, action := range []api.WriteAction{toStat, toWrite, toCommit, 99} {
			_, err = s.write(ctx, &api.WriteContentRequest{Action: action, Ref: "r", Expected: d})
			wantKind(t, "Write", err, errdefs.ErrInvalidArgument)
			wantShort(t, "Write", err)
			_, err = s.write(ctx, &api.WriteContentRequest{Ref: "r"}, &api.WriteContentRequest{Action: action, Expected: d})
			wantKind(t, "later Write", err, errdefs.ErrInvalidArgument)
		}
	}
	s.works("afterwards")
}

// wantShort wants an error that fits into the headers of any client.
func wantShort(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil && len(err.Error()) > 8<<10 {
		t.Errorf("%s: an error of %d bytes: %.200s", what, len(err.Error()), err)
	}
}

func TestOddRefsAreRefsAndLongOnesAreNone(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	for _, ref := range []string{
		"\x00", "a\x00b", "a\nb", "../../etc/passwd", "/", ".", " ", "\u202e", "\U0010ffff", strings.Repeat("/", 4096), strings.Repeat("\x00", 4096),
	} {
		what := "ref " + strings.ToValidUTF8(ref[:min(len(ref), 10)], "")
		resp, err := s.write(ctx, &api.WriteContentRequest{Action: toWrite, Ref: ref, Data: []byte(ref)})
		if err != nil || resp.Offset != int64(len(ref)) {
			t.Fatalf("%q: Write: %v, %v", what, resp, err)
		}
		st, err := s.api.Status(ctx, &api.StatusRequest{Ref: ref})
		if err != nil || st.Status.Ref != ref || st.Status.Offset != int64(len(ref)) {
			t.Errorf("%q: Status: %v, %v", what, st, err)
		}
		_, err = s.api.Status(ctx, &api.StatusRequest{Ref: ref + "\x00"})
		wantKind(t, what+" and more: Status", err, errdefs.ErrNotFound)
		if _, err := s.api.Abort(ctx, &api.AbortRequest{Ref: ref}); err != nil {
			t.Errorf("%q: Abort: %v", what, err)
		}
	}
	for _, ref := range []string{"", strings.Repeat("r", 4097), strings.Repeat("r", megabyte), strings.Repeat("\x00", megabyte)} {
		_, err := s.write(ctx, &api.WriteContentRequest{Ref: ref})
		wantKind(t, "Write", err, errdefs.ErrInvalidArgument)
		wantShort(t, "Write", err)
		_, err = s.api.Status(ctx, &api.StatusRequest{Ref: ref})
		wantKind(t, "Status", err, errdefs.ErrNotFound)
		wantShort(t, "Status", err)
		_, err = s.api.Abort(ctx, &api.AbortRequest{Ref: ref})
		wantKind(t, "Abort", err, errdefs.ErrNotFound)
		wantShort(t, "Abort", err)
	}
	s.works("afterwards")
}

func TestLabelsOverTheLimitAreRefused(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	d := put(t, s.store, one, body)
	many := map[string]string{}
	for i := range 2*megabyte/4096 + 1 {
		many[fmt.Sprintf("%04d", i)] = strings.Repeat("v", 4092)
	}
	for name, labels := range map[string]map[string]string{
		"a long key":    {strings.Repeat("k", 4097): "v"},
		"a long value":  {"k": strings.Repeat("v", 4096)},
		"a huge value":  {"k": strings.Repeat("v", megabyte)},
		"a huge key":    {strings.Repeat("k", megabyte): ""},
		"no key":        {"": "v"},
		"too many":      many,
		"ten megabytes": {"k": strings.Repeat("v", 10*megabyte)},
	} {
		_, err := s.api.Update(ctx, &api.UpdateRequest{Info: &api.Info{Digest: d.String(), Labels: labels}})
		wantKind(t, name+": Update", err, errdefs.ErrInvalidArgument)
		wantShort(t, name+": Update", err)
		_, err = s.api.Update(ctx, &api.UpdateRequest{
			Info: &api.Info{Digest: d.String(), Labels: labels}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
		})
		wantKind(t, name+": Update of labels", err, errdefs.ErrInvalidArgument)
		_, err = s.write(ctx, &api.WriteContentRequest{Action: toCommit, Ref: "r", Data: []byte("x"), Labels: labels})
		wantKind(t, name+": commit", err, errdefs.ErrInvalidArgument)
		wantShort(t, name+": commit", err)
	}
	for _, path := range []string{"", "labels.", "size", "digest", "Labels", "labels.\x00..", strings.Repeat("x", megabyte), "labels." + strings.Repeat("x", megabyte)} {
		_, err := s.api.Update(ctx, &api.UpdateRequest{Info: &api.Info{Digest: d.String(), Labels: map[string]string{"a": "1"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}})
		if !strings.HasPrefix(path, "labels.") || path == "labels." {
			wantKind(t, "Update of "+path[:min(len(path), 9)], err, errdefs.ErrInvalidArgument)
		}
		wantShort(t, "Update of "+path[:min(len(path), 9)], err)
	}
	// What says nothing is no reason to fall over.
	_, err := s.api.Update(ctx, &api.UpdateRequest{})
	wantKind(t, "Update of nothing", err, errdefs.ErrInvalidArgument)
	if info, err := s.store.In(one).Info(ctx, d); err != nil || len(info.Labels) > 0 {
		t.Errorf("Info: %+v, %v; want no label", info, err)
	}
	s.works("afterwards")
}

func TestOffsetsAndTotalsBeyondEverythingAreRefused(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	d := put(t, s.store, one, body)
	size := int64(len(body))
	for _, c := range []struct {
		offset, size int64
		want         error
	}{
		{math.MaxInt64, 0, errdefs.ErrOutOfRange},
		{math.MaxInt64, math.MaxInt64, errdefs.ErrOutOfRange},
		{size + 1, math.MinInt64, errdefs.ErrOutOfRange},
		{size, math.MaxInt64, nil},
		{1, math.MaxInt64, nil},
		{math.MinInt64, math.MaxInt64, nil},
		{math.MinInt64, math.MinInt64, nil},
	} {
		if err := s.read(ctx, &api.ReadContentRequest{Digest: d.String(), Offset: c.offset, Size: c.size}); !errors.Is(err, c.want) {
			t.Errorf("Read of %d at %d: %v, want %v", c.size, c.offset, err, c.want)
		}
	}
	half := &api.WriteContentRequest{Action: toWrite, Ref: "r", Data: []byte("half")}
	for _, c := range []struct {
		name string
		want error
		last *api.WriteContentRequest
	}{
		{"the largest offset", errdefs.ErrOutOfRange, &api.WriteContentRequest{Action: toWrite, Offset: math.MaxInt64, Data: []byte("x")}},
		{"an offset near the largest", errdefs.ErrOutOfRange, &api.WriteContentRequest{Action: toCommit, Offset: math.MaxInt64 - 1, Data: []byte("xxx")}},
		{"the largest total", errdefs.ErrFailedPrecondition, &api.WriteContentRequest{Action: toCommit, Offset: 4, Total: math.MaxInt64}},
		{"another digest", errdefs.ErrFailedPrecondition, &api.WriteContentRequest{Action: toCommit, Offset: 4, Expected: digest.FromString("x").String()}},
	} {
		_, err := s.write(ctx, half, c.last)
		wantKind(t, c.name, err, c.want)
		st, err := s.store.In(one).Status(ctx, "r")
		if err != nil || st.Offset != 4 {
			t.Errorf("%s: Status: %+v, %v; want the ingest kept", c.name, st, err)
		}
		must(t, s.store.In(one).Abort(ctx, "r"))
	}
	for _, c := range []struct {
		total int64
		want  error
	}{
		{-1, errdefs.ErrInvalidArgument},
		{math.MinInt64, errdefs.ErrInvalidArgument},
		{math.MaxInt64, errdefs.ErrResourceExhausted},
		{1 << 60, errdefs.ErrResourceExhausted},
	} {
		for _, action := range []api.WriteAction{toStat, toWrite, toCommit} {
			_, err := s.write(ctx, &api.WriteContentRequest{Action: action, Ref: "r", Total: c.total})
			wantKind(t, "total", err, c.want)
			if errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("total %d: %v: clients would try for ever", c.total, err)
			}
		}
		_ = s.store.In(one).Abort(ctx, "r")
	}
	s.works("afterwards")
}

func TestMessagesOutOfTurnAreAnsweredByKind(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	_, err := s.write(ctx, &api.WriteContentRequest{Action: toWrite, Data: []byte("x")})
	wantKind(t, "a first message without a ref", err, errdefs.ErrInvalidArgument)
	// An action that is none does nothing, as in containerd.
	for _, action := range []api.WriteAction{3, 99, -1, math.MaxInt32, math.MinInt32} {
		resp, err := s.write(ctx, &api.WriteContentRequest{Action: action, Ref: "odd", Data: []byte("x"), Offset: 7})
		if err != nil || resp.Offset != 0 {
			t.Errorf("action %d: %v, %v", action, resp, err)
		}
	}
	// The ref of a stream is that of its first message.
	if _, err := s.write(ctx,
		&api.WriteContentRequest{Action: toWrite, Ref: "first", Data: []byte("abc")},
		&api.WriteContentRequest{Action: toWrite, Ref: "second", Offset: 3, Data: []byte("def")},
	); err != nil {
		t.Errorf("Write with another ref: %v", err)
	}
	if st, err := s.store.In(one).Status(ctx, "first"); err != nil || st.Offset != 6 {
		t.Errorf("Status of the first ref: %+v, %v", st, err)
	}
	_, err = s.store.In(one).Status(ctx, "second")
	wantKind(t, "Status of the second ref", err, errdefs.ErrNotFound)
	// A stream that has committed is over.
	resp, err := s.write(ctx,
		&api.WriteContentRequest{Action: toCommit, Ref: "r", Data: []byte("abc")},
		&api.WriteContentRequest{Action: toWrite, Offset: 3, Data: []byte("def")})
	if !errors.Is(err, io.EOF) {
		t.Errorf("Write after a commit: %v, %v; want the end", resp, err)
	}
	_, err = s.write(rpc.WithScope(t.Context(), namespace.Scope{Name: "one", Lease: "none"}), &api.WriteContentRequest{Ref: "leased"})
	wantKind(t, "Write with a lease that does not exist", err, errdefs.ErrNotFound)
	s.works("afterwards")
}

func TestHugeMessagesEndTheirStreamAndNoOther(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	_, err := s.write(ctx, &api.WriteContentRequest{Action: toWrite, Ref: "r", Data: make([]byte, rpc.MessageMax+1)})
	wantKind(t, "Write", err, errdefs.ErrResourceExhausted)
	_, err = s.store.In(one).Status(ctx, "r")
	wantKind(t, "Status", err, errdefs.ErrNotFound)
	most := make([]byte, rpc.MessageMax-1024)
	if _, err := s.write(ctx, &api.WriteContentRequest{Action: toCommit, Ref: "r", Data: most, Expected: digest.FromBytes(most).String()}); err != nil {
		t.Errorf("Write of the most that a message takes: %v", err)
	}
	if _, err := content.ReadAll(ctx, s.store.In(one), digest.FromBytes(most), rpc.MessageMax); err != nil {
		t.Errorf("ReadAll: %v", err)
	}
	s.works("afterwards")
}

func TestFiltersOfAnySizeAreAnswered(t *testing.T) {
	s := newSite(t)
	ctx := s.as(one)
	put(t, s.store, one, body)
	for _, f := range []string{
		"=", "digest==", `digest~=/(/,`, `"`, "digest==\x00", strings.Repeat("a.", megabyte), strings.Repeat("(", megabyte),
		"digest~=/" + strings.Repeat("(", 5000) + "/", "digest~=/((a{1000}){1000}){1000}/", strings.Repeat(",", megabyte),
	} {
		err := s.list(ctx, f)
		if err != nil {
			wantKind(t, "List", err, errdefs.ErrInvalidArgument)
			wantShort(t, "List", err)
		}
		_, err = s.api.ListStatuses(ctx, &api.ListStatusesRequest{Filters: []string{f}})
		if err != nil {
			wantKind(t, "ListStatuses", err, errdefs.ErrInvalidArgument)
			wantShort(t, "ListStatuses", err)
		}
	}
	if err := s.list(ctx, slicesOf("size==1", 100_000)...); err != nil {
		t.Errorf("List with many filters: %v", err)
	}
	s.works("afterwards")
}

func slicesOf(text string, n int) []string {
	return strings.Split(strings.TrimSuffix(strings.Repeat(text+"\n", n), "\n"), "\n")
}
