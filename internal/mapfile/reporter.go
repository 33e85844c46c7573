package mapfile

import (
	"slices"

	"dma/internal/config"
)

// MaxProblems bounds what a Reporter tells of one state of a file.
const MaxProblems = 100

// Reporter tells the problems of a file once, until they change.
type Reporter struct {
	Tell func(config.Problem) // nil: nobody wants to know

	last []config.Problem
}

// Report tells problems, at most MaxProblems and that there are more.
func (r *Reporter) Report(problems []config.Problem) {
	if len(problems) > MaxProblems {
		problems = append(problems[:MaxProblems:MaxProblems],
			config.Problem{File: problems[0].File, Text: "more problems than are shown here"})
	}
	if r.Tell != nil && !slices.Equal(problems, r.last) {
		for _, p := range problems {
			r.Tell(p)
		}
	}
	r.last = problems
}
