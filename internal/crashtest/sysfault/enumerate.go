package sysfault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// Plan says how Enumerate breaks a program.
type Plan struct {
	Scope   Scope
	Match   func(Call) bool   // the calls that count; nil means all in Scope
	Action  func(Call) Action // what happens at the chosen call; nil means KillTree
	Max     int               // at most so many runs, drawn by Seed; 0 means one for each call
	Seed    uint64
	Timeout time.Duration // for each run, then the tree is killed and the test fails; 0 means 30 s
}

// Enumerate runs a program once undisturbed to count its calls, then once for
// each call number (or for Max of them) with the plan's action at that call.
// Each broken run is a subtest named after the call number, so that -run can
// repeat it.
//
// newCmd prepares a fresh state and returns the command; its t is the one of
// the run. each checks what the run left behind: first n = 0 and an empty Call
// for the undisturbed run, then the number and the call that was broken. The
// command must end on its own. A program with threads may make its calls in
// another order, or a few less of them, than in the undisturbed run: a run in
// which the chosen call did not come is repeated with an earlier one. If even
// that fails in more than every second run, t fails.
func Enumerate(t *testing.T, p Plan, newCmd func(t *testing.T) *exec.Cmd, each func(t *testing.T, n int, call Call, res Result)) {
	t.Helper()
	Need(t)
	if p.Action == nil {
		p.Action = func(Call) Action { return Action{Op: KillTree} }
	}
	total := 0
	res := p.run(t, newCmd(t), func(c Call) Action {
		if p.Match == nil || p.Match(c) {
			total++
		}
		return Action{}
	})
	each(t, 0, Call{}, res)
	if t.Failed() {
		t.Fatal("the undisturbed run failed")
	}
	if total == 0 {
		t.Fatal("no call to break: wrong roots, classes or match?")
	}
	points := sample(total, p.Max, p.Seed)
	t.Logf("%d calls, %d runs", total, len(points))
	runs, missed := 0, 0
	for _, n := range points {
		t.Run(fmt.Sprintf("call%04d", n), func(t *testing.T) {
			runs++
			var hit Call
			var res Result
			// A run that makes fewer calls than the undisturbed one is broken
			// at an earlier call instead.
			for at, try := n, 0; hit.N == 0 && at > 0 && try < 3; try++ {
				seen := 0
				res = p.run(t, newCmd(t), func(c Call) Action {
					if p.Match != nil && !p.Match(c) {
						return Action{}
					}
					if seen++; seen != at {
						return Action{}
					}
					hit = c
					return p.Action(c)
				})
				if hit.N == 0 {
					t.Logf("only %d calls in this run", seen)
					at = seen * 3 / 4
				} else {
					n = at
				}
			}
			if hit.N == 0 {
				missed++
				return
			}
			each(t, n, hit, res)
			if t.Failed() {
				t.Logf("broken at %v", hit)
			}
		})
	}
	if missed*2 > runs {
		t.Errorf("the chosen call did not come in %d of %d runs", missed, runs)
	}
}

func (p Plan) run(t *testing.T, cmd *exec.Cmd, decide func(Call) Action) Result {
	t.Helper()
	limit := p.Timeout
	if limit == 0 {
		limit = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	res, err := Run(ctx, cmd, p.Scope, decide)
	if err != nil {
		t.Fatalf("%v (after %d calls)", err, len(res.Calls))
	}
	return res
}

// sample returns the numbers 1 to total in order, or limit of them.
func sample(total, limit int, seed uint64) []int {
	s := rand.New(rand.NewPCG(seed, uint64(total))).Perm(total)
	if limit > 0 && limit < total {
		s = s[:limit]
	}
	for i := range s {
		s[i]++
	}
	slices.Sort(s)
	return s
}
