package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/localwriter"
	"dma/spooldir"
)

// failingContent can be read up to an offset; fail is called when more is wanted.
type failingContent struct {
	content string
	most    int64
	fail    func()
}

func (c *failingContent) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > c.most {
		if c.fail != nil {
			c.fail()
			c.fail = nil
		}
		return 0, errors.New("trouble of the disk")
	}
	return strings.NewReader(c.content).ReadAt(p, off)
}

// TestTornEnd: nothing is put behind what may be the beginning of a message,
// whatever else there is in hand for the mailbox.
func TestTornEnd(t *testing.T) { everyWay(t, testTornEnd) }

func testTornEnd(t *testing.T, newHome func(*testing.T) *home) {
	big := "Subject: big\n\n" + strings.Repeat("a line of the message\n", 40000)
	setup := func(t *testing.T, detail string) (*home, *Job, *Job) {
		h := newHome(t)
		torn, other := h.job(spooldir.Mailbox, "", ""), h.job(spooldir.Mailbox, "", "")
		torn.Message.Content, torn.Message.Size = strings.NewReader(big), int64(len(big))
		other.Detail = detail
		return h, torn, other
	}
	check := func(t *testing.T, h *home, torn, other *Job) {
		t.Helper()
		if !localwriter.Unfinished(torn.Err, torn.Message.Suspect) {
			t.Errorf("the torn message: %v", torn.Err)
		}
		if other.Err == nil || localwriter.Unfinished(other.Err, other.Message.Suspect) {
			t.Errorf("the other message: %v", other.Err)
		}
		if strings.Contains(h.read("mbox"), other.Message.ID) {
			t.Error("the other message stands behind the torn one")
		}
	}
	for _, detail := range []string{"", "d"} {
		t.Run("not taken back"+detail, func(t *testing.T) {
			h, torn, other := setup(t, detail)
			// What a program without locks writes meanwhile keeps the file as it is.
			torn.Message.Content = &failingContent{big, 600_000, func() {
				f, err := os.OpenFile(filepath.Join(h.dir, "mbox"), os.O_WRONLY|os.O_APPEND, 0)
				if err == nil {
					_, err = f.WriteString("x")
					err = errors.Join(err, f.Close())
				}
				if err != nil {
					t.Error(err)
				}
			}}
			h.deliver(torn, other)
			if !strings.Contains(h.read("mbox"), torn.Message.ID) {
				t.Fatal("nothing was torn")
			}
			check(t, h, torn, other)
		})
		t.Run("not looked for"+detail, func(t *testing.T) {
			h, torn, other := setup(t, detail)
			h.deliver(torn)
			if torn.Err != nil {
				t.Fatal(torn.Err)
			}
			if err := os.Truncate(filepath.Join(h.dir, "mbox"), 700_000); err != nil {
				t.Fatal(err)
			}
			good := torn.Message.Content
			torn.Message.Suspect, torn.Message.Content = true, &failingContent{big, 600_000, nil}
			h.deliver(torn, other)
			check(t, h, torn, other)
			torn.Message.Content = good
			h.deliver(torn, other)
			if torn.Err != nil || other.Err != nil {
				t.Fatal(torn.Err, other.Err)
			}
			mbox := h.read("mbox")
			if strings.Count(mbox, big) != 1 || strings.Count(mbox, torn.Message.ID) != 1 || strings.Count(mbox, other.Message.ID) != 1 {
				t.Errorf("%d octets, not each message once", len(mbox))
			}
		})
	}
}
