package systemtest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"dma/internal/crashtest/powercut"
	"dma/spooldir"
)

// moved is the mark of an outcome that was synced.
type moved struct {
	name spooldir.Name
	to   spooldir.State
}

// TestPowerCutNetSync cuts the power while outcomes move out of remote and are
// synced by that directory alone, as the net process of a shared spool does:
// what was synced stands where it went, and nowhere else. Without the sync that
// does not hold, or the test could not fail.
func TestPowerCutNetSync(t *testing.T) {
	goals := []spooldir.State{spooldir.Sent, spooldir.Tempfail, spooldir.Permfail}
	arrived := func(img powercut.Image) error {
		s, err := spooldir.Open(img.Dir + "/spool")
		if err != nil {
			return err
		}
		var errs []error
		for _, note := range img.Marks {
			m := note.(moved)
			at, err := s.Find(m.name)
			if err != nil {
				return err
			}
			if len(at) != 1 || at[0] != m.to {
				errs = append(errs, fmt.Errorf("%s stands in %v and was synced in %s", m.name, at, m.to))
			}
		}
		return errors.Join(errs...)
	}
	for _, fs := range disks {
		for _, sync := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/sync=%v", fs, sync), func(t *testing.T) {
				p := powercut.New(t, fs)
				var names []spooldir.Name
				p.Prepare(func(dir string) error {
					if err := spooldir.Init(dir + "/spool"); err != nil {
						return err
					}
					s, err := spooldir.Open(dir + "/spool")
					if err != nil {
						return err
					}
					for range 12 {
						d, err := s.Create(&spooldir.Envelope{Recipients: []spooldir.Recipient{{Address: "a@host.example"}}})
						if err != nil {
							return err
						}
						if err := d.Commit(); err != nil {
							return err
						}
						name, err := spooldir.ParseName(d.ID() + ".1-a@host.example")
						if err != nil {
							return err
						}
						if err := s.Move(name, spooldir.New, spooldir.Remote); err != nil {
							return err
						}
						names = append(names, name)
					}
					return s.Sync(spooldir.Remote, names...)
				})
				dir := p.Mount()
				s, err := spooldir.Open(dir + "/spool")
				if err != nil {
					t.Fatal(err)
				}
				if !s.FileSystem().Ordered {
					t.Fatalf("%s is not known as ordered", fs)
				}
				y := s.NewSyncerFrom(spooldir.Remote, nil)
				for i, name := range names {
					to := goals[i%len(goals)]
					if err := s.Move(name, spooldir.Remote, to); err != nil {
						t.Fatal(err)
					}
					y.Note(name, to)
					if sync {
						if err := y.Flush(); err != nil {
							t.Fatal(err)
						}
					}
					p.Mark(moved{name, to})
				}
				plan := powercut.Plan{Max: atMost(60), Seed: 1, Timeout: 5 * time.Minute}
				if sync {
					p.Replay(plan, arrived)
					return
				}
				plan.Stop = 1
				if r := p.Explore(plan, arrived); len(r.Violations) == 0 {
					t.Error("nothing was synced, and no image misses anything")
				}
			})
		}
	}
}
