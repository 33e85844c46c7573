package localwriter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// awkward is content with everything that makes recovery hard.
const awkward = "Subject: x\nStatus: RO\n\nFrom me\n>From you\n\n\x00\x00\x00\nFrom \n\n\nX-Dma-Delivery: m.1\n\x00end"

const before = "From other Wed Mar  4 00:00:00 2026\nSubject: old\n\nold body\n\n"

// A delivery that was cut off at any byte, with nothing or zero bytes behind,
// is made whole, and nothing else changes.
func TestTornAtEveryByte(t *testing.T) {
	path := mboxPath(t)
	m := testMessage("m", 1, awkward)
	r := rendering(t, m)
	for _, existing := range []string{"", before} {
		for k := 0; k <= len(r); k++ {
			for _, zeros := range []int{0, 1, len(r) - k, len(r) - k + 1000} {
				if existing == "" && zeros > 1 {
					continue
				}
				writeFile(t, path, existing+r[:k]+strings.Repeat("\x00", zeros))
				already := deliver(t, unsyncedMbox(path), suspect(m))
				got := readFile(t, path)
				if k == len(r) && already[0] && got == existing+r+strings.Repeat("\x00", zeros) {
					continue // whole: what stands behind is nobody's
				}
				if already[0] && k < len(r)-1 && zeros == 0 {
					t.Fatalf("cut at %d: taken for delivered", k)
				}
				sameText(t, fmt.Sprintf("cut at %d of %d, %d zero bytes", k, len(r), zeros), got, existing+r)
			}
		}
	}
}

// The same, when another program's mail was appended behind what was cut off:
// nothing of it may change, and there is a whole message.
func TestTornBeforeOtherMail(t *testing.T) {
	path := mboxPath(t)
	m := testMessage("m", 1, awkward)
	r := rendering(t, m)
	after := strings.ReplaceAll(before, "old", "new")
	for k := 1; k < len(r); k++ {
		writeFile(t, path, before+r[:k]+"\n"+after)
		deliver(t, unsyncedMbox(path), suspect(m))
		got := readFile(t, path)
		// With only the last newlines missing, all of it is there.
		if got == before+r[:k]+"\n"+after && k >= len(r)-2 {
			continue
		}
		sameText(t, fmt.Sprintf("cut at %d", k), got, before+r[:k]+"\n"+after+r)
	}
}

// Blocks that did not reach the disk, in the middle of messages that were
// written together, are filled in where they are.
func TestLostBlocks(t *testing.T) {
	path := mboxPath(t)
	var batch []Message
	all := before
	for i := range 6 {
		m := suspect(testMessage(fmt.Sprintf("lost-%d", i), 1, "Subject: x\n\n"+strings.Repeat(fmt.Sprintf("line of %d\n", i), 150)))
		batch = append(batch, m)
		all += rendering(t, m)
	}
	const block = 256
	for first := 0; first*block < len(all); first++ {
		for _, n := range []int{1, 2, 3, 5} {
			b := []byte(all)
			for i := max(first*block, len(before)); i < min((first+n)*block, len(b)); i++ {
				b[i] = 0
			}
			writeFile(t, path, string(b))
			deliver(t, unsyncedMbox(path), batch...)
			sameText(t, fmt.Sprintf("blocks %d to %d lost", first, first+n), readFile(t, path), all)
		}
	}
}

// Whatever blocks are lost, nothing fails, nothing that was there before
// changes, and every message is whole once.
func TestRandomLostBlocks(t *testing.T) {
	path := mboxPath(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 120 {
		var batch []Message
		all := before
		for i := range 8 {
			body := strings.Repeat("From x\n", 1+rng.IntN(300))
			m := suspect(testMessage(fmt.Sprintf("r%d-%d", round, i), 1, "Subject: x\n\n"+body))
			batch = append(batch, m)
			all += rendering(t, m)
		}
		b := []byte(all)[:len(before)+rng.IntN(len(all)-len(before)+1)]
		for at := 0; at < len(b); at += 512 {
			if rng.IntN(4) == 0 && at+512 > len(before) {
				clear(b[max(at, len(before)):min(at+512, len(b))])
			}
		}
		writeFile(t, path, string(b))
		rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		deliver(t, unsyncedMbox(path), batch...)
		got := readFile(t, path)
		if !strings.HasPrefix(got, before) {
			t.Fatalf("round %d: old mail has changed", round)
		}
		for _, m := range batch {
			if n := strings.Count(got, rendering(t, m)); n != 1 {
				t.Fatalf("round %d: %d copies of %s", round, n, m.ID)
			}
		}
		// A second recovery finds everything.
		for i, already := range deliver(t, unsyncedMbox(path), batch...) {
			if !already {
				t.Fatalf("round %d: message %d is not found again", round, i)
			}
		}
		sameText(t, "second recovery", readFile(t, path), got)
	}
}

// Messages that a mail reader has marked count as delivered.
func TestMarkedByReader(t *testing.T) {
	path := mboxPath(t)
	m := suspect(testMessage("m", 1, "Subject: x\nStatus: RO\nX-UID: 5\nTo: y\n\nFrom me\nbody\n"))
	r := rendering(t, m)
	other := strings.ReplaceAll(before, "old", "new")
	for name, change := range map[string]func(string) string{
		"status added":   func(s string) string { return strings.Replace(s, "To: y\n", "To: y\nX-Status: A\nX-Keywords: \n", 1) },
		"status changed": func(s string) string { return strings.Replace(s, "Status: RO", "Status: O", 1) },
		"status moved": func(s string) string {
			return strings.Replace(strings.Replace(s, "Status: RO\n", "", 1), "To: y\n", "To: y\nStatus: R\n", 1)
		},
		"own fields removed": func(s string) string {
			return strings.Replace(strings.Replace(s, "X-UID: 5\n", "", 1), "Status: RO\n", "", 1)
		},
		"any line inserted": func(s string) string { return strings.Replace(s, "Subject", "X-New: a\n b\nSubject", 1) },
		"after the id":      func(s string) string { return strings.Replace(s, "Return-Path", "X-IMAPbase: 1 2\nReturn-Path", 1) },
		"length added": func(s string) string {
			return strings.Replace(s, "To: y\n", "To: y\nContent-Length: 13\nLines: 2\n", 1)
		},
		"empty line at the end": func(s string) string { return s + "\n" },
	} {
		for _, after := range []string{"", other} {
			marked := before + change(r) + after
			if marked == before+r+after {
				t.Fatalf("%s: nothing has changed", name)
			}
			writeFile(t, path, marked)
			if already := deliver(t, unsyncedMbox(path), m); !already[0] {
				t.Errorf("%s: not recognised", name)
			}
			sameText(t, name, readFile(t, path), marked)
		}
	}
	for name, change := range map[string]func(string) string{
		"body changed":    func(s string) string { return strings.Replace(s, "body", "bodY", 1) },
		"body cut":        func(s string) string { return strings.Replace(s, "body\n", "bo\n", 1) },
		"field removed":   func(s string) string { return strings.Replace(s, "To: y\n", "", 1) },
		"not behind From": func(s string) string { return strings.Replace(s, "X-Dma", "A: b\nX-Dma", 1) },
		"other recipient": func(s string) string { return strings.Replace(s, "m.1\n", "m.11\n", 1) },
	} {
		writeFile(t, path, before+change(r)+other)
		deliver(t, unsyncedMbox(path), m)
		sameText(t, name, readFile(t, path), before+change(r)+other+r)
	}
}

// What somebody else wrote into a message does not pass for a delivery.
func TestForgedMark(t *testing.T) {
	path := mboxPath(t)
	m := testMessage("victim", 2, "Subject: x\n\nimportant\n")
	forged := testMessage("attack", 1, "X-Dma-Delivery: victim.2\nSubject: y\n\nX-Dma-Delivery: victim.2\n\n"+rendering(t, m))
	deliver(t, unsyncedMbox(path), forged)
	if already := deliver(t, unsyncedMbox(path), suspect(m)); already[0] {
		t.Fatal("a forged mark was believed")
	}
	sameText(t, "mailbox", readFile(t, path), rendering(t, forged)+rendering(t, m))
}

// More marked messages than are remembered, and messages across the borders of
// what is read at a time.
func TestSearchLarge(t *testing.T) {
	path := mboxPath(t)
	var b bytes.Buffer
	var messages []Message
	for i := range 700 {
		m := suspect(testMessage(fmt.Sprintf("large-%d", i), i%3+1, "Subject: x\n\n"+strings.Repeat("x", 1000+i)))
		messages = append(messages, m)
		b.WriteString(rendering(t, m))
	}
	writeFile(t, path, b.String())
	s := openMbox(t, unsyncedMbox(path))
	for _, m := range messages {
		if already, err := s.Append(context.Background(), m); !already || err != nil {
			t.Fatalf("%s: %v %v", m.ID, already, err)
		}
	}
	s.(*mboxSession).found.messages = nil // as if there were too many
	for _, m := range messages[:3] {
		if already, err := s.Append(context.Background(), m); !already || err != nil {
			t.Fatalf("%s: %v %v", m.ID, already, err)
		}
	}
	if err := errors.Join(s.Commit(), s.Close()); err != nil {
		t.Fatal(err)
	}
	sameText(t, "mailbox", readFile(t, path), b.String())
}

// What another program left without a newline does not swallow our message.
func TestAppendBehindTornText(t *testing.T) {
	path := mboxPath(t)
	m := testMessage("m", 1, "Subject: x\n\nbody\n")
	for existing, pad := range map[string]string{
		"": "", before: "", "From x\n\ncut": "\n\n", "From x\n\ncut\n": "\n", "\n": "\n", "\n\n": "", "x": "\n\n", "\x00": "\n\n",
	} {
		writeFile(t, path, existing)
		deliver(t, unsyncedMbox(path), m, m)
		sameText(t, fmt.Sprintf("behind %q", existing), readFile(t, path), existing+pad+rendering(t, m)+rendering(t, m))
	}
}

// The outcome of a recovery is synced too.
func TestAlreadyIsSynced(t *testing.T) {
	path := mboxPath(t)
	m := testMessage("m", 1, "Subject: x\n\nbody\n")
	writeFile(t, path, rendering(t, m))
	syncs := 0
	box := unsyncedMbox(path)
	box.sys = countingSystem(&syncs)
	if already := deliver(t, box, suspect(m)); !already[0] || syncs != 2 {
		t.Errorf("already %v, %d fsyncs, want true, and 2 with the directory", already, syncs)
	}
	box.sys.sync = func(*os.File) error { return os.ErrInvalid }
	s := openMbox(t, box)
	if _, err := s.Append(context.Background(), suspect(m)); err != nil {
		t.Fatal(err)
	}
	if s.Commit() == nil {
		t.Error("a failed fsync was not reported")
	}
	s.Close()
	sameText(t, "mailbox", readFile(t, path), rendering(t, m))
}

// TestMend: what was cut off at the end of the mailbox goes before another message
// that may have been cut off is put there, whichever comes first.
func TestMend(t *testing.T) {
	path := mboxPath(t)
	torn, other := testMessage("torn", 1, awkward), testMessage("other", 1, "Subject: other\n\nbody\n")
	r := rendering(t, torn)
	for _, k := range []int{1, len(r) / 2, len(r) - 3} {
		writeFile(t, path, before+r[:k])
		s, err := OpenMbox(t.Context(), unsyncedMbox(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []Message{other, torn} {
			if err := s.Mend(t.Context(), suspect(m)); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range []Message{other, torn} {
			if already, err := s.Append(t.Context(), suspect(m)); err != nil || already {
				t.Fatal(already, err)
			}
		}
		if err := errors.Join(s.Commit(), s.Close()); err != nil {
			t.Fatal(err)
		}
		sameText(t, fmt.Sprintf("cut at %d of %d", k, len(r)), readFile(t, path), before+rendering(t, other)+r)
	}
}
