package powercut

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Mode says what became of the writes that the disk had taken since its last
// flush. What came before the flush is always there.
type Mode int

const (
	FlushedOnly  Mode = iota // none has reached the platter
	Prefix                   // all have
	Subset                   // each with probability 1/2
	Torn                     // all, the last one cut at a sector
	DropOne                  // all but one
	SectorSubset             // each sector of each write with probability 1/2
)

func (m Mode) String() string {
	names := [...]string{"flushed-only", "prefix", "subset", "torn", "drop-one", "sector-subset"}
	if m < 0 || int(m) >= len(names) {
		return fmt.Sprintf("Mode(%d)", int(m))
	}
	return names[m]
}

// AllModes returns every mode. ext4 and xfs survive all of them, as their
// journals carry checksums; so that holds, a write to the first block is never
// cut: it holds ext4's superblock, which spans two sectors and is written in
// place, and no program can do anything about its tearing.
func AllModes() []Mode { return []Mode{FlushedOnly, Prefix, Subset, Torn, DropOne, SectorSubset} }

// point is one crash image: the log up to pos, and what is lost of it.
type point struct {
	pos  int
	mode Mode
}

// points lists the crash images of a log that can differ, or limit of them. The
// moments just after a mark, with nothing but the flushed writes, come first:
// they test what was promised most strictly. The others are drawn by seed.
func points(log []record, modes []Mode, limit int, seed uint64) []point {
	var strict, other []point
	pending := 0
	flushedOnly := slices.Contains(modes, FlushedOnly)
	for i, r := range log {
		switch r.kind {
		case flush:
			pending = 0
		case write, discard:
			pending++
		}
		for _, m := range modes {
			p := point{i + 1, m}
			switch {
			case r.kind == mark && m == FlushedOnly:
				strict = append(strict, p)
			case m == FlushedOnly && r.kind != flush: // as before this record
			case m != FlushedOnly && flushedOnly && (pending == 0 || pending == 1 && m == DropOne): // as flushed-only
			default:
				other = append(other, p)
			}
		}
	}
	if limit > 0 && len(strict)+len(other) > limit {
		rnd := rand.New(rand.NewPCG(seed, uint64(len(log))))
		for _, s := range [][]point{strict, other} {
			rnd.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
		}
		strict = strict[:min(len(strict), limit)]
		other = other[:limit-len(strict)]
	}
	all := append(strict, other...)
	slices.SortFunc(all, func(a, b point) int { return (a.pos-b.pos)*16 + int(a.mode-b.mode) })
	return all
}

// replayer walks a log and makes crash images.
type replayer struct {
	base    *disk // all that is flushed at pos
	log     []record
	pos     int // records before it have been looked at
	pending []record
	marks   []any
}

func newReplayer(initial *disk, log []record) *replayer {
	return &replayer{base: initial.view(), log: log}
}

// seek moves forward to the moment after record pos-1. No image may be in use.
func (r *replayer) seek(pos int) {
	for ; r.pos < pos; r.pos++ {
		switch rec := r.log[r.pos]; rec.kind {
		case flush:
			for _, w := range r.pending {
				r.base.apply(w)
			}
			r.pending = r.pending[:0]
		case mark:
			r.marks = append(r.marks, rec.note)
		default:
			r.pending = append(r.pending, rec)
		}
	}
}

// image returns the disk as a power cut now may have left it.
func (r *replayer) image(m Mode, seed uint64) *disk {
	rnd := rand.New(rand.NewPCG(seed, uint64(r.pos)*16+uint64(m)))
	d := r.base.view()
	if m == FlushedOnly || len(r.pending) == 0 {
		return d
	}
	drop := rnd.IntN(len(r.pending))
	for i, w := range r.pending {
		last := i == len(r.pending)-1
		switch {
		case m == Subset && rnd.IntN(2) == 0, m == DropOne && i == drop:
			continue
		case m == SectorSubset && w.off < blockSize && rnd.IntN(2) == 0:
			continue
		case w.off < blockSize: // never cut
		case m == Torn && last && len(w.data) > sector:
			w.data = w.data[:sector*(1+rnd.IntN((len(w.data)-1)/sector))]
		case m == SectorSubset && w.kind == write:
			for o := 0; o < len(w.data); o += sector {
				if rnd.IntN(2) == 0 {
					d.put(w.data[o:min(o+sector, len(w.data))], w.off+int64(o))
				}
			}
			continue
		}
		d.apply(w)
	}
	return d
}
