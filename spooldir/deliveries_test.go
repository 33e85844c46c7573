package spooldir

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestDeliveries: a journal is read on from where it ended, a torn line counts
// when it is whole, and another file is another journal.
func TestDeliveries(t *testing.T) {
	s := newSpool(t)
	const id = "20400101T000000-00000000000000aa"
	path := filepath.Join(s.Path(), LogDir, id)
	var d Deliveries
	is := func(n int) bool {
		t.Helper()
		is, err := d.Of(s, id)
		if err != nil {
			t.Fatal(err)
		}
		return is(n)
	}
	write := func(text []byte, flag int) {
		t.Helper()
		file, err := os.OpenFile(path, os.O_WRONLY|flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	line := func(event Event, numbers ...int) []byte {
		e := Entry{Time: time.Unix(2e9, 0), Event: event, Recipients: numbers, Reply: "a reply"}
		return e.Encode()
	}
	if is(1) {
		t.Error("without a journal")
	}
	write(line(Delivered, 1), os.O_CREATE)
	write(line(Expanded, 7), os.O_APPEND)
	write(line(Deferred, 2), os.O_APPEND)
	if !is(7) {
		t.Error("an expanded recipient")
	}
	if !is(1) || is(2) || len(d.long) != 0 {
		t.Errorf("a short journal: %v, %v, remembered: %d", is(1), is(2), len(d.long))
	}
	for range longJournal/len(line(Deferred, 2)) + 1 {
		write(line(Deferred, 2), os.O_APPEND)
	}
	if !is(1) || is(2) || is(3) || len(d.long) != 1 {
		t.Errorf("a long journal: %v, %v, remembered: %d", is(1), is(2), len(d.long))
	}
	// What was read is not read again.
	write(line(Delivered, 3), 0)
	last := line(Delivered, 4, 5)
	write(last[:20], os.O_APPEND)
	if !is(1) || is(3) || is(4) {
		t.Errorf("a torn line: %v, %v, %v", is(1), is(3), is(4))
	}
	write(last[20:], os.O_APPEND)
	if !is(1) || !is(4) || !is(5) {
		t.Errorf("the line is whole: %v, %v, %v", is(1), is(4), is(5))
	}
	// A journal that lost something, and one that is another file.
	if err := os.Truncate(path, int64(len(line(Delivered, 3)))); err != nil {
		t.Fatal(err)
	}
	if is(1) || !is(3) {
		t.Error("a shorter journal")
	}
	write(line(Delivered, 6), os.O_APPEND)
	if !is(6) {
		t.Error("it has grown again")
	}
	if err := os.Rename(path, path+".x"); err != nil {
		t.Fatal(err)
	}
	if is(3) {
		t.Error("the journal is gone")
	}
	write(line(Delivered, 7), os.O_CREATE)
	if is(3) || !is(7) {
		t.Error("another journal")
	}
	d.Forget(id)
	if len(d.long) != 0 {
		t.Error("it is not forgotten")
	}
	if err := os.Mkdir(filepath.Join(s.Path(), LogDir, id+"d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Of(s, id+"d"); err == nil {
		t.Error("a directory is a journal")
	}
}
