package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"sort"
	"strings"
	"time"
	"unicode"

	"dma/internal/door"
	"dma/smarthost"
	"dma/spooldir"
)

// waiting is one recipient of the queue listing.
type waiting struct {
	ID        string     `json:"id"`
	N         int        `json:"n"`
	Name      string     `json:"name"`
	State     string     `json:"state"`
	Recipient string     `json:"recipient"`
	Sender    string     `json:"sender"`
	Size      int64      `json:"size"`
	Arrival   time.Time  `json:"arrival"`
	Attempts  int        `json:"attempts"`
	Next      *time.Time `json:"next,omitempty"`
	Status    string     `json:"status,omitempty"`
	Reason    string     `json:"reason,omitempty"`

	submitter int // uid that handed the message in, nobody for one of dma's own
}

// nobody is the submitter of what no user handed in.
const nobody = -1

// runMailq lists what waits.
func runMailq(c *call) error {
	asJSON := false
	for _, a := range c.args {
		if a != "--json" && a != "-j" {
			return exitf(exitUsage, "mailq knows --json and no %q", a)
		}
		asJSON = true
	}
	var list []waiting
	// The file may be the net process's alone: it is read before root becomes
	// another user. Who is not told of the whole queue is not told of this either.
	refused, _ := smarthost.ReadRefusals(filepath.Join(c.config.SpoolDir, spooldir.LockDir, spooldir.LoginsFile))
	s, err := c.open()
	if err == nil {
		list, err = listQueue(s)
	} else {
		refused = nil
		err = c.byDoor(err, func(client door.Client) error {
			return client.List(func(entry []byte) error {
				var w waiting
				if err := json.Unmarshal(entry, &w); err != nil {
					return fmt.Errorf("an entry of the queue: %w", err)
				}
				list = append(list, w)
				return nil
			})
		})
	}
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(c.stdio.Out)
		for i := range list {
			if err := enc.Encode(&list[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := printQueue(c.stdio.Out, list); err != nil {
		return err
	}
	return printRefused(c.stdio.Out, refused, time.Now())
}

// byDoor lets the service do, over its socket, what this process may not do on
// the spool itself, and err says why it may not.
func (c *call) byDoor(err error, ask func(door.Client) error) error {
	path := c.config.Door()
	if path == "" {
		return err
	}
	asked := ask(door.Client{Path: path})
	if asked == nil {
		return nil
	}
	code := exitTempfail
	var refusal *door.Refusal
	if errors.As(asked, &refusal) {
		if refusal.Kind == door.Denied {
			code = exitNoPerm
		}
		return exitf(code, "%w", refusal)
	}
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		code, err = exit.code, exit.err
	case errors.Is(err, fs.ErrPermission):
		code = exitNoPerm
	}
	return exitf(code, "%w; nor by the socket of the service: %w", err, asked)
}

// submittedBy returns the door's look at the queue. A user sees the messages
// that he handed in, and of them only these: what aliases and .forward files of
// others made of them is not his to know.
func submittedBy(s *spooldir.Spool) func(uid int, all bool) (iter.Seq[[]byte], error) {
	return func(uid int, all bool) (iter.Seq[[]byte], error) {
		list, err := listQueue(s)
		if err != nil {
			return nil, err
		}
		return func(yield func([]byte) bool) {
			for i := range list {
				if !all && list[i].submitter != uid {
					continue
				}
				// Strings, numbers and times within their range: no error.
				if entry, err := json.Marshal(&list[i]); err == nil && !yield(entry) {
					return
				}
			}
		}, nil
	}
}

// listQueue reads the queue: every recipient once, though names move.
func listQueue(s *spooldir.Spool) ([]waiting, error) {
	places, err := s.List()
	if err != nil {
		return nil, err
	}
	journals := make(map[string]*spooldir.Journal)
	var list []waiting
	for _, p := range places {
		w, ok, err := describe(s, p, journals)
		if err != nil {
			return nil, err
		}
		if ok {
			for _, text := range []*string{&w.Recipient, &w.Sender, &w.Status, &w.Reason} {
				*text = printable(*text)
			}
			list = append(list, w)
		}
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].ID != list[j].ID {
			return list[i].ID < list[j].ID
		}
		return list[i].N < list[j].N
	})
	return list, nil
}

// describe tells about one recipient. It is not ok if the name is no mail, or
// moved on to its end.
func describe(s *spooldir.Spool, p spooldir.Place, journals map[string]*spooldir.Journal) (waiting, bool, error) {
	m, err := s.Open(p.State, p.Name)
	// It may move on between the look for it and opening it, but not for ever.
	for range 20 {
		if !errors.Is(err, spooldir.ErrGone) {
			break
		}
		at, err2 := s.Find(p.Name)
		if err2 != nil || len(at) == 0 {
			return waiting{}, false, err2
		}
		p.State = at[len(at)-1]
		m, err = s.Open(p.State, p.Name)
	}
	if errors.Is(err, spooldir.ErrGone) {
		return waiting{}, false, nil
	}
	if errors.Is(err, spooldir.ErrUncommitted) {
		return waiting{}, false, nil
	}
	if err != nil {
		return unreadable(p, err), true, nil
	}
	defer m.Close()
	r := &m.Recipients[p.Name.N-1]
	w := waiting{
		ID: p.Name.ID, N: p.Name.N, Name: p.Name.String(), State: string(p.State),
		Recipient: r.Label(), Sender: m.Sender, Size: m.ContentLength, Arrival: m.Arrival,
		submitter: submitter(s, m),
	}
	j := journals[m.ID]
	if j == nil {
		if j, err = s.ReadJournal(m.ID); err != nil {
			j = &spooldir.Journal{}
			if !errors.Is(err, fs.ErrNotExist) {
				w.Reason = err.Error() // of this one: the others are listed
			}
		}
		journals[m.ID] = j
	}
	w.Attempts = j.Attempts(w.N)
	if last := j.Last(w.N); last != nil {
		w.Status, w.Reason = last.Status, last.Reply
	}
	if next := j.Next(w.N); !next.IsZero() && p.State == spooldir.Tempfail {
		w.Next = &next
	}
	return w, true, nil
}

// submitter returns who handed a message in, nobody for one of dma's own.
func submitter(s *spooldir.Spool, m *spooldir.Message) int {
	if m.Kind() != spooldir.Submitted {
		return nobody
	}
	return s.SubmittedBy(m)
}

// unreadable is what is listed for a file that cannot be read: it is shown,
// not passed over, since somebody has to look at it.
func unreadable(p spooldir.Place, err error) waiting {
	return waiting{ID: p.Name.ID, N: p.Name.N, Name: p.Name.String(), State: string(p.State), Recipient: p.Name.String(), Reason: err.Error(), submitter: nobody}
}

// printQueue prints the listing for people: a line a message, a line a
// recipient, and its reason.
func printQueue(w io.Writer, list []waiting) error {
	var b strings.Builder
	if len(list) == 0 {
		b.WriteString("Mail queue is empty\n")
	}
	var size int64
	messages := 0
	for i := range list {
		e := &list[i]
		if i == 0 || list[i-1].ID != e.ID {
			messages++
			size += e.Size
			fmt.Fprintf(&b, "%s  %s  %s  from <%s>\n", e.ID, octets(e.Size), e.Arrival.Local().Format("2006-01-02 15:04:05"), printable(e.Sender))
		}
		fmt.Fprintf(&b, "    %-10s %s", e.State, printable(e.Recipient))
		if e.Next != nil {
			fmt.Fprintf(&b, "  (next attempt %s)", e.Next.Local().Format("2006-01-02 15:04:05"))
		}
		b.WriteByte('\n')
		if e.Reason != "" {
			reason := e.Reason
			if e.Status != "" && !strings.Contains(reason, e.Status+" ") {
				reason = e.Status + " " + reason
			}
			fmt.Fprintf(&b, "               %s\n", printable(reason))
		}
	}
	if len(list) > 0 {
		fmt.Fprintf(&b, "-- %s in %s for %s\n", octets(size), count(messages, "message"), count(len(list), "recipient"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printRefused prints which logins relays have refused and are not tried now: that
// is why mail waits which has not been tried.
func printRefused(w io.Writer, refused []smarthost.Refusal, now time.Time) error {
	var b strings.Builder
	for _, r := range refused {
		if !now.Before(r.Until) {
			continue
		}
		fmt.Fprintf(&b, "login of %s refused by %s %s, last at %s; not tried before %s\n               %s\n",
			printable(r.Login), printable(r.Relay), count(r.Times, "time"), r.At.Local().Format(time.DateTime), r.Until.Local().Format(time.DateTime), printable(r.Reason))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func octets(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%dM", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%dK", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

// printable makes one line of untrusted text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
