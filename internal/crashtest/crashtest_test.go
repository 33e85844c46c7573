package crashtest

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// recorder is a testing.TB that notes how Need decides.
type recorder struct {
	testing.TB
	got string
}

func (r *recorder) Helper()      {}
func (r *recorder) Skip(...any)  { r.got = "skip" }
func (r *recorder) Fatal(...any) { r.got = "fail" }

func TestNeed(t *testing.T) {
	missing := fmt.Errorf("wrapped: %w", &Missing{What: "mkfs.xfs", Remedy: "apt-get install xfsprogs"})
	other := errors.New("no /dev/fuse")
	asRoot := "skip"
	if os.Geteuid() == 0 {
		asRoot = "fail"
	}
	for _, tc := range []struct {
		ci, wanted string
		err        error
		want       string
	}{
		{"", "", nil, "skip"},
		{"", "", missing, "skip"},
		{"false", "", nil, "skip"},
		{"true", "", nil, ""},
		{"", "1", nil, ""},
		{"true", "", other, "skip"},
		{"true", "", missing, asRoot},
		{"", "1", missing, asRoot},
	} {
		t.Setenv("CI", tc.ci)
		t.Setenv("DMA_SYSTEM_TESTS", tc.wanted)
		r := &recorder{TB: t}
		if Need(r, tc.err); r.got != tc.want {
			t.Errorf("CI=%q DMA_SYSTEM_TESTS=%q %v: %q, want %q", tc.ci, tc.wanted, tc.err, r.got, tc.want)
		}
	}
}
