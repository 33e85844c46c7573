package spooldir

import (
	"bytes"
	"os"
	"reflect"
	"testing"
	"time"
)

func TestJournal(t *testing.T) {
	s := newSpool(t)
	id := NewID(time.Now())
	at := time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)
	next := at.Add(time.Hour)
	entries := []Entry{
		{Time: at, Event: Queued},
		{Time: at, Event: Deferred, Recipients: []int{1, 2, 3, 7}, Status: "4.2.0", Relay: "host[::1]:25", Reply: "451 come\nback #later", Next: next},
		{Time: at, Event: Refused, Recipients: []int{2}, Status: "4.4.1", Next: next},
		{Time: at, Event: Deferred, Recipients: []int{3}, Status: "4.4.2", Next: next, Uncertain: true},
		{Time: at, Event: Delivered, Recipients: []int{2, 3}, Status: "2.0.0", DSN: true},
	}
	if err := s.AppendJournal(id, false, entries[0]); !os.IsNotExist(err) {
		t.Errorf("append without a journal: %v, want not-exist", err)
	}
	if made, err := s.CreateJournal(id); !made || err != nil {
		t.Fatal(made, err)
	}
	if made, err := s.CreateJournal(id); made || err != nil {
		t.Fatal(made, err)
	}
	for _, e := range entries {
		if err := s.AppendJournal(id, true, e); err != nil {
			t.Fatal(err)
		}
	}
	j, err := s.ReadJournal(id)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(j.Entries, entries) {
		t.Errorf("read %+v,\nwant %+v", j.Entries, entries)
	}
	for n, want := range map[int]bool{1: false, 2: true, 3: true, 7: false, 23: false} {
		if j.Delivered(n) != want {
			t.Errorf("Delivered(%d) = %v", n, !want)
		}
	}
	if !j.Uncertain(3) || j.Uncertain(2) || j.Uncertain(23) {
		t.Errorf("uncertain: %v, %v, %v", j.Uncertain(3), j.Uncertain(2), j.Uncertain(23))
	}
	if j.Attempts(2) != 2 || j.Attempts(4) != 0 {
		t.Errorf("attempts: %d of 2, %d of 4", j.Attempts(2), j.Attempts(4))
	}
	if !j.Next(7).Equal(next) || !j.Next(4).IsZero() {
		t.Errorf("next: %v of 7, %v of 4", j.Next(7), j.Next(4))
	}
}

// TestTornJournal cuts a journal at every octet, as a power cut may, and
// appends: what was whole before the cut and what came after must both count,
// and a part of a line must never say "delivered".
func TestTornJournal(t *testing.T) {
	s := newSpool(t)
	id := NewID(time.Now())
	at := time.Unix(1700000000, 0).UTC()
	first := Entry{Time: at, Event: Delivered, Recipients: []int{1}}
	torn := Entry{Time: at, Event: Delivered, Recipients: []int{21, 22, 23}, Reply: "ok"}
	last := Entry{Time: at, Event: Delivered, Recipients: []int{3}}
	whole := append(first.Encode(), torn.Encode()...)
	for cut := len(first.Encode()); cut <= len(whole); cut++ {
		for _, tail := range [][]byte{nil, make([]byte, 100)} { // zeros, too
			if err := os.WriteFile(s.journal(id), append(bytes.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := s.AppendJournal(id, false, last); err != nil {
				t.Fatal(err)
			}
			j, err := s.ReadJournal(id)
			if err != nil {
				t.Fatal(err)
			}
			if !j.Delivered(1) || !j.Delivered(3) {
				t.Errorf("cut at %d: 1 %v, 3 %v", cut, j.Delivered(1), j.Delivered(3))
			}
			complete := cut == len(whole) || cut == len(whole)-1 && tail == nil
			if j.Delivered(22) != complete || j.Delivered(2) {
				t.Errorf("cut at %d of %d: 22 %v, 2 %v", cut, len(whole), j.Delivered(22), j.Delivered(2))
			}
		}
	}
}

func TestMerge(t *testing.T) {
	at := time.Unix(1, 0)
	var got []Entry
	for _, n := range []int{1, 2, 9, 5} {
		got = Merge(got, Entry{Time: at, Event: Deferred, Recipients: []int{n}, Status: "4.0.0"})
	}
	got = Merge(got, Entry{Time: at, Event: Deferred, Recipients: []int{3}, Status: "4.1.0"})
	got = Merge(got, Entry{Time: at, Event: Deferred, Recipients: []int{4}, Status: "4.1.0", Uncertain: true})
	if len(got) != 3 || !reflect.DeepEqual(got[0].Recipients, []int{1, 2, 5, 9}) {
		t.Errorf("%+v", got)
	}
}

func FuzzEntry(f *testing.F) {
	e := Entry{Time: time.Unix(1700000000, 5000), Event: Delivered, Recipients: []int{1, 2, 5}, Status: "2.0.0", Relay: "h", Reply: "a b", Next: time.Unix(1800000000, 0), DSN: true, Uncertain: true}
	f.Add(bytes.TrimSuffix(e.Encode(), []byte("\n")))
	f.Add([]byte("1.000000 queued - #00000000"))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEntry(line)
		if err != nil {
			return
		}
		again, err := ParseEntry(bytes.TrimSuffix(e.Encode(), []byte("\n")))
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Errorf("%q reads as %+v, and written again as %+v, %v", line, e, again, err)
		}
	})
}

func FuzzJournal(f *testing.F) {
	e := Entry{Time: time.Unix(1700000000, 5000), Event: Delivered, Recipients: []int{1}}
	f.Add(append(e.Encode(), "torn"...))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := parseJournal(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for n := range 5 {
			j.Delivered(n)
			j.Last(n)
			j.Next(n)
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	e := Envelope{
		ID: "20261122T184216-0123456789abcdefc", Arrival: time.Unix(1700000000, 0), Sender: "a@b", UID: 5, EightBit: true,
		Parents:    []Parent{{NewName("20261122T184216-0123456789abcdef", 1, "x")}},
		Recipients: []Recipient{{Kind: Command, Address: "a@b", User: "a", Target: "x y", Source: "forward"}, {Address: "c@d", Notify: "NEVER"}},
	}
	f.Add(e.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEnvelope(data)
		if err != nil {
			// The fuzzer does not find checksums: give it the inside.
			if len(data) > firstLine {
				p := envelopeParser{e: &Envelope{}}
				for _, line := range bytes.Split(data[firstLine:], []byte("\n")) {
					if p.line(string(line)) != nil {
						return
					}
				}
				p.finish()
			}
			return
		}
		again, err := parseEnvelope(e.encode())
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Errorf("read %+v, and written again %+v, %v", e, again, err)
		}
	})
}
