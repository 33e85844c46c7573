package powercut

import (
	"bytes"
	"slices"
	"testing"
)

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func content(d *disk, off int64, n int) []byte {
	p := fill('?', n)
	d.readAt(p, off)
	return p
}

func TestDisk(t *testing.T) {
	base := newDisk(1 << 20)
	base.apply(record{kind: write, off: 1000, data: fill('a', 10000)})
	v := base.view()
	v.record(true)
	v.change(record{kind: write, off: 4090, data: fill('b', 20)})
	v.change(record{kind: discard, off: 8000, size: 2000})
	v.change(record{kind: write, off: 0, data: fill(0, blockSize)})
	v.flush()
	if got := content(base, 999, 10002); !bytes.Equal(got, append(append([]byte{0}, fill('a', 10000)...), 0)) {
		t.Error("a view has changed its parent")
	}
	want := append(fill(0, 4096), fill('b', 14)...)
	want = append(append(append(want, fill('a', 8000-4110)...), fill(0, 2000)...), fill('a', 1000)...)
	if got := content(v, 0, 11000); !bytes.Equal(got, want) {
		t.Error("wrong content of a view")
	}
	if len(v.log) != 4 || v.log[3].kind != flush || len(base.log) != 0 {
		t.Errorf("%d and %d records", len(v.log), len(base.log))
	}
}

// TestImages checks what each mode keeps of a log with one flush in the middle.
func TestImages(t *testing.T) {
	log := []record{
		{kind: write, off: 4096, data: fill('1', 1024)},
		{kind: mark, note: "m"},
		{kind: flush},
		{kind: write, off: 8192, data: fill('2', 1024)},
		{kind: write, off: 12288, data: fill('3', 2048)},
	}
	seen := map[Mode]map[string]bool{}
	for seed := range uint64(200) {
		for _, m := range AllModes() {
			r := newReplayer(newDisk(1<<20), log)
			r.seek(len(log))
			d := r.image(m, seed)
			s := ""
			for o := int64(0); o < 16384; o += sector {
				if c := content(d, o, sector); !bytes.Equal(c, fill(c[0], sector)) {
					t.Fatalf("%v cuts within a sector", m)
				} else if c[0] != 0 {
					s += string(c[0])
				}
			}
			if seen[m] == nil {
				seen[m] = map[string]bool{}
			}
			seen[m][s] = true
			if len(r.marks) != 1 {
				t.Fatalf("marks %v", r.marks)
			}
		}
	}
	for m, want := range map[Mode][]string{
		FlushedOnly: {"11"},
		Prefix:      {"11223333"},
		Subset:      {"11", "1122", "11223333", "113333"},
		Torn:        {"11223", "112233", "1122333"},
		DropOne:     {"1122", "113333"},
	} {
		var got []string
		for s := range seen[m] {
			got = append(got, s)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%v: %v, want %v", m, got, want)
		}
	}
	if len(seen[SectorSubset]) != 3*5 {
		t.Errorf("%v: %v", SectorSubset, seen[SectorSubset])
	}
}

// TestFirstBlock checks that a superblock is written whole or not at all.
func TestFirstBlock(t *testing.T) {
	seen := map[byte]bool{}
	for seed := range uint64(50) {
		for _, m := range AllModes() {
			r := newReplayer(newDisk(1<<20), []record{{kind: write, off: 0, data: fill('s', blockSize)}})
			r.seek(1)
			c := content(r.image(m, seed), 0, blockSize)
			if !bytes.Equal(c, fill(c[0], blockSize)) {
				t.Fatalf("%v cuts the first block", m)
			}
			seen[c[0]] = seen[c[0]] || m == SectorSubset
		}
	}
	if !seen[0] || !seen['s'] {
		t.Errorf("%v: %v", SectorSubset, seen)
	}
}

func TestPoints(t *testing.T) {
	log := []record{{kind: write}, {kind: mark}, {kind: flush}, {kind: mark}, {kind: write}, {kind: write}}
	got := points(log, []Mode{FlushedOnly, Prefix, DropOne}, 0, 1)
	want := []point{{1, Prefix}, {2, FlushedOnly}, {2, Prefix}, {3, FlushedOnly}, {4, FlushedOnly}, {5, Prefix}, {6, Prefix}, {6, DropOne}}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	for limit := 1; limit < 8; limit++ {
		p := points(log, []Mode{FlushedOnly, Prefix, DropOne}, limit, 1)
		if len(p) != limit || !slices.IsSortedFunc(p, func(a, b point) int { return a.pos - b.pos }) {
			t.Errorf("limit %d: %v", limit, p)
		}
		if limit >= 2 && !(slices.Contains(p, point{2, FlushedOnly}) && slices.Contains(p, point{4, FlushedOnly})) {
			t.Errorf("limit %d lacks the marks: %v", limit, p)
		}
	}
}
