package contentd

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/services/backup/backuptest"
	"github.com/gantryd/gantry/services/content"
)

// TestBackup keeps names and values as labels of two blobs.
func TestBackup(t *testing.T) {
	backuptest.Run(t, func(t *testing.T) backuptest.Subject {
		s := openStore(t, testConfig(t), nil)
		return backuptest.Subject{
			Keeper: s,
			Set: func(t *testing.T, name, value string) {
				put(t, s, one, []byte(name))
				_, err := s.In(one).Update(t.Context(), content.Info{
					Digest: digest.FromString(name), Labels: map[string]string{"value": value},
				})
				must(t, err)
			},
			Get: func(t *testing.T, name string) string {
				info, err := s.In(one).Info(t.Context(), digest.FromString(name))
				if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
					t.Fatal(err)
				}
				return info.Labels["value"]
			},
		}
	})
}
