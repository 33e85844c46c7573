package queue

import (
	"errors"
	"slices"

	"dma/agent"
	"dma/localwriter"
	"dma/spooldir"
)

// unfinished is a recipient of whose message an mbox may hold the beginning, as its
// last text: that can be mended while nothing comes to stand behind it.
type unfinished struct {
	name  spooldir.Name
	times int // how often it was left so
}

// maxUnfinished is how often a delivery is left unfinished before it is a failure
// like others, which the sender hears of in the end.
const maxUnfinished = 10

// placeOf names the mailbox or file of a job.
func placeOf(user string, j *agent.Job) string {
	return j.Kind.String() + "\x00" + user + "\x00" + j.Target
}

func nameOf(j *agent.Job) spooldir.Name {
	return j.Message.Content.(*spooldir.Message).Name(j.Message.Recipient)
}

// ready orders the jobs of a batch and leaves out those that have to wait for
// unfinished ones that are not in it, which ring for them when they are done.
func (q *Queue) ready(user string, jobs []*agent.Job) []*agent.Job {
	slices.SortStableFunc(jobs, inTurn)
	q.mu.Lock()
	none := len(q.unfinished) == 0
	q.mu.Unlock()
	if none {
		return jobs
	}
	byName, byPlace := make(map[string]*agent.Job), make(map[string]bool)
	for _, j := range jobs {
		byName[nameOf(j).String()], byPlace[placeOf(user, j)] = j, true
	}
	var first []*agent.Job         // unfinished ones, in the order in which they were begun
	waits := make(map[string]bool) // places with others of these elsewhere
	begun := make(map[string]bool) // names in first
	for place := range byPlace {
		for _, u := range q.standing(place, byName) {
			j := byName[u.name.String()]
			if waits[place] = waits[place] || j == nil; waits[place] {
				break
			}
			first, begun[u.name.String()] = append(first, j), true
		}
	}
	return append(first, slices.DeleteFunc(jobs, func(j *agent.Job) bool {
		return waits[placeOf(user, j)] || begun[nameOf(j).String()]
	})...)
}

// standing returns what is unfinished at a place, but for names that are in local
// no more: somebody has taken them away.
func (q *Queue) standing(place string, known map[string]*agent.Job) []unfinished {
	q.mu.Lock()
	list := slices.Clone(q.unfinished[place])
	q.mu.Unlock()
	for _, u := range list {
		if known[u.name.String()] != nil {
			continue
		}
		m, err := q.open(spooldir.Local, u.name)
		if m != nil {
			m.Close()
		} else if err == nil {
			q.isFinished(place, u.name)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.unfinished[place])
}

// leftUnfinished reports whether some of a message may stand at a place after an
// attempt. What was left so before stays so until somebody has looked there.
func (q *Queue) leftUnfinished(place string, j *agent.Job) bool {
	switch {
	case j.Err == nil, j.Kind == spooldir.Command, errors.Is(j.Err, agent.ErrUnlisted), errors.Is(j.Err, agent.ErrNotServed):
		return false
	case errors.Is(j.Err, agent.ErrUnfinished), localwriter.Unfinished(j.Err, j.Message.Suspect):
		return true
	}
	var looked *localwriter.Error
	if errors.As(j.Err, &looked) {
		return false
	}
	name := nameOf(j).String()
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.unfinished[place], func(u unfinished) bool { return u.name.String() == name })
}

// isUnfinished notes that a delivery was left so, and reports whether it is to be
// tried again before anything else at its place.
func (q *Queue) isUnfinished(place string, name spooldir.Name) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.unfinished[place]
	for i := range list {
		if list[i].name.String() == name.String() {
			list[i].times++
			return list[i].times < maxUnfinished
		}
	}
	q.unfinished[place] = append(list, unfinished{name, 1})
	return true
}

// isFinished notes that nothing of a recipient is in the way at a place, and has
// those looked at again that have waited for it.
func (q *Queue) isFinished(place string, name spooldir.Name) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.unfinished[place]
	i := slices.IndexFunc(list, func(u unfinished) bool { return u.name.String() == name.String() })
	if i < 0 {
		return
	}
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(q.unfinished, place)
	} else {
		q.unfinished[place] = list
	}
	q.bell(spooldir.Local).RingAll()
}
