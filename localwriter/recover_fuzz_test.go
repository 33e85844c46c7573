package localwriter

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// lostParts reports whether text can be what a power cut left of a rendering, or
// of the beginning of it: it has zero bytes for some.
func lostParts(text, rendering string) bool {
	for i, b := range []byte(text) {
		if b != 0 && (i >= len(rendering) || b != rendering[i]) {
			return false
		}
	}
	return true
}

// oldMail returns what of a mailbox no recovery of the messages may change: all
// but what stands last and can be taken for one of them, cut off.
func oldMail(old string, messages ...string) string {
	for begin := 0; ; {
		for _, m := range messages {
			if lostParts(old[begin:], m) {
				return old[:begin]
			}
		}
		n := strings.Index(old[max(0, begin-1):], "\n\n")
		if n < 0 {
			return old
		}
		begin = max(0, begin-1) + n + 2
	}
}

// FuzzRecover: whatever stands in a mailbox, wherever the delivery of two
// messages to it is cut off and whatever blocks of it are lost, afterwards the
// old mail is there as it was and each of the messages once. Where they were only
// cut off, nothing else is.
func FuzzRecover(f *testing.F) {
	long := strings.Repeat("From me\n\n", 300)
	for _, old := range []string{"", before, "\n", "x", "a\n\nF", before + "\x00\x00", before + "From a", "From other\n\n\n\x00\n\n" + long} {
		for cut := range 4 {
			f.Add(old, awkward, "a: b\n\nx", uint16(cut*90), uint16(0), uint8(0), uint8(0), cut%2 == 0)
			f.Add(old, "", awkward, uint16(cut*90), uint16(cut*100), uint8(0), uint8(0), cut%2 == 0)
			f.Add(old, "a: b\n\n"+long, awkward, uint16(cut*1300), uint16(cut*100), uint8(cut), uint8(2), cut%2 == 0)
		}
	}
	path := filepath.Join(f.TempDir(), "mbox")
	f.Fuzz(func(t *testing.T, old, first, second string, cut, zeros uint16, lost, blocks uint8, swap bool) {
		one, two := testMessage("one", 1, first), testMessage("two", 1, second)
		for _, s := range []string{old, first, second} {
			if strings.Contains(s, idField+one.key()) || strings.Contains(s, idField+two.key()) {
				return // ids never repeat, and nobody knows one beforehand
			}
		}
		writeFile(t, path, old)
		deliver(t, unsyncedMbox(path), one, two)
		text := []byte(readFile(t, path))
		end := min(len(old)+int(cut), len(text))
		text = append(text[:end], make([]byte, min(int(zeros), 5000))...)
		const block = 512
		from := (len(old)/block + int(lost)) * block
		for i := max(from, len(old)); i < min(from+int(blocks)*block, end); i++ {
			text[i] = 0
		}
		writeFile(t, path, string(text))

		batch := []Message{suspect(one), suspect(two)}
		if swap {
			batch[0], batch[1] = batch[1], batch[0]
		}
		recover := func() (already []bool) {
			s := openMbox(t, unsyncedMbox(path))
			for _, m := range batch {
				if err := s.Mend(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range batch {
				a, err := s.Append(t.Context(), m)
				if err != nil {
					t.Fatal(err)
				}
				already = append(already, a)
			}
			if err := errors.Join(s.Commit(), s.Close()); err != nil {
				t.Fatal(err)
			}
			return already
		}
		recover()
		got := readFile(t, path)
		// Zero bytes can be where a message was.
		keep := oldMail(old, rendering(t, one), rendering(t, two))
		if len(got) < len(keep) || !lostParts(keep, got) {
			t.Fatalf("old mail has changed:\n got %q\nwant %q\nfrom %q", got, keep, text)
		}
		rest := got[len(keep):]
		for _, m := range batch {
			if n := strings.Count(got, rendering(t, m)); n != 1 {
				t.Fatalf("%d copies of %s:\n got %q\nfrom %q", n, m.ID, got, text)
			}
			rest = strings.Replace(rest, rendering(t, m), "", 1)
		}
		if rest = strings.Trim(rest, "\n\x00"); blocks == 0 && !strings.Contains(old[len(keep):], rest) {
			t.Fatalf("%q is left over:\n got %q\nfrom %q", rest, got, text)
		}
		for i, already := range recover() {
			if !already {
				t.Fatalf("%s is not found again:\n got %q\nfrom %q", batch[i].ID, got, text)
			}
		}
		if again := readFile(t, path); !bytes.Equal([]byte(again), []byte(got)) {
			t.Fatalf("a second recovery changes something:\n got %q\nwant %q\nfrom %q", again, got, text)
		}
	})
}
