package queue

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"dma/internal/address"
	"dma/internal/passwd"
	"dma/spooldir"
)

// forwardNotice is how long mail waits for a .forward to be mended before
// postmaster hears of it.
const forwardNotice = 4 * time.Hour

// troubles are the users whose .forward keeps mail waiting and whom postmaster
// was told of, with the detail of the address for which it could not be read. A
// user stands here until it can be: more messages, and other details, are no
// news. The journals of the messages that were told of keep it for the next
// process.
type troubles map[string]string

// reasons are why .forward files cannot be used, as the log has it: a reason
// stands here until the file can be read. More messages are no news.
type reasons map[userDetail]string

// userDetail is a user and the detail of an address for that user.
type userDetail struct{ user, detail string }

// maxReasons bounds reasons: details are whatever senders write. Beyond it all
// are forgotten, and logged again.
const maxReasons = 1000

// note takes a reason up and reports whether it is news.
func (r reasons) note(of userDetail, reason string) bool {
	if r[of] == reason {
		return false
	}
	if len(r) >= maxReasons {
		clear(r)
	}
	r[of] = reason
	return true
}

// forwardTrouble logs that the .forward of u, at path if that is known, cannot be
// used for a detail, if that is news. It tells postmaster that recipient n of m
// waits for it, if it has waited for long and postmaster does not know yet. The
// message is locked.
func (q *Queue) forwardTrouble(u passwd.User, detail, path string, m *spooldir.Message, n int, reason error) error {
	now := q.clock.Now()
	journal, err := q.history(m)
	if err != nil {
		return err
	}
	of, text := userDetail{u.Name, detail}, reason.Error()
	q.mu.Lock()
	_, known := q.logged[of]
	last := journal.Last(n)
	// Where nothing is known an earlier process may have logged it.
	news := (known || last == nil || last.Reply != text) && q.logged.note(of, text)
	q.mu.Unlock()
	if news {
		q.log.ForwardTrouble(u.Name, path, text)
	}
	if now.Sub(since(m, journal)) < forwardNotice {
		return nil
	}
	q.mu.Lock()
	_, told := q.told[u.Name]
	q.told[u.Name] = detail
	q.mu.Unlock()
	if noticed(journal, n, postmaster) {
		return nil
	}
	if !told {
		if err := q.commitNotice(u, m.ID, reason); err != nil {
			q.mu.Lock()
			delete(q.told, u.Name)
			q.mu.Unlock()
			return err
		}
	}
	return q.spool.AppendJournal(m.ID, false, spooldir.Entry{
		Time: now, Event: spooldir.Noticed, Recipients: []int{n}, Relay: postmaster, Reply: u.Name + " " + detail,
	})
}

// forwardMended notes that the .forward of u for a detail can be read.
func (q *Queue) forwardMended(u passwd.User, detail string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d, told := q.told[u.Name]; told && d == detail {
		delete(q.told, u.Name)
	}
	delete(q.logged, userDetail{u.Name, detail})
}

// recallTroubles takes from the journal of a message in tempfail of whom an
// earlier process told postmaster.
func (q *Queue) recallTroubles(journal *spooldir.Journal, numbers []int) {
	for i := range journal.Entries {
		e := &journal.Entries[i]
		if e.Event != spooldir.Noticed || e.Relay != postmaster {
			continue
		}
		for _, n := range e.Recipients {
			last := journal.Last(n)
			if last == nil || last.Status != forwardStatus || last.Relay != "local" || !slices.Contains(numbers, n) {
				continue
			}
			user, detail, _ := strings.Cut(e.Reply, " ")
			q.mu.Lock()
			q.told[user] = detail
			q.mu.Unlock()
		}
	}
}

// forwardStatus is the status of what waits for a .forward.
const forwardStatus = "4.3.5"

// noticed reports whether a notice about recipient n was committed: to the sender,
// who is "" here, or to postmaster.
func noticed(journal *spooldir.Journal, n int, to string) bool {
	for i := range journal.Entries {
		e := &journal.Entries[i]
		if e.Event == spooldir.Noticed && e.Relay == to && (len(e.Recipients) == 0 || slices.Contains(e.Recipients, n)) {
			return true
		}
	}
	return false
}

// commitNotice commits the message to postmaster.
func (q *Queue) commitNotice(u passwd.User, id string, reason error) error {
	now := q.clock.Now()
	env := &spooldir.Envelope{
		ID: spooldir.NewID(now), Arrival: now, UID: q.spool.Owner(),
		Recipients: []spooldir.Recipient{{Kind: spooldir.Address, Address: postmaster}},
	}
	waiting, err := q.waitingFor(u)
	if err != nil {
		return err
	}
	waiting[id] = true // it stands in forwarding, or is on its way
	what := "1 message waits"
	if len(waiting) > 1 {
		what = fmt.Sprintf("%d messages wait", len(waiting))
	}
	host := q.config.HostName
	var b strings.Builder
	fmt.Fprintf(&b, "From: Mail Delivery System <MAILER-DAEMON@%s>\nTo: %s\nSubject: Mail for %s waits for the user's .forward\nDate: %s\nMessage-ID: <%s@%s>\n",
		host, q.qualify(postmaster), plain(u.Name), now.Format("Mon, 02 Jan 2006 15:04:05 -0700"), env.ID, host)
	b.WriteString("Auto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n")
	fmt.Fprintf(&b, "%s for the user %s on %s, the first of them for more than %s.\nThe .forward of the user cannot be used:\n\n    %s\n\n",
		what, plain(u.Name), host, age(forwardNotice), plain(reason.Error()))
	fmt.Fprintf(&b, "Mend that, and run \"dma-runner flush\": then the mail goes on at once. It does so\nby itself too, but later. What still waits after %s goes back to its senders.\n\n", age(q.config.Retry.Expire))
	fmt.Fprintf(&b, "You are told this once, until the .forward of %s could be read.\n", plain(u.Name))
	text := b.String()
	for i := 0; i < len(text); i++ {
		env.EightBit = env.EightBit || text[i] >= 0x80
	}
	draft, err := q.write(env, "", strings.NewReader(text))
	if err != nil {
		return err
	}
	defer draft.Close()
	q.bell(spooldir.New).Ring(env.Name(1))
	return nil
}

// plain is text of others, in one line of a message.
func plain(s string) string {
	const most = 800
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// waitingFor returns the ids of the messages that wait in tempfail and forwarding
// under the name of a user. Nobody is looked up for it: a message under another
// spelling of the name, or for root under that of postmaster, is not counted.
func (q *Queue) waitingFor(u passwd.User) (map[string]bool, error) {
	ids := make(map[string]bool)
	for _, state := range []spooldir.State{spooldir.Tempfail, spooldir.Forwarding} {
		var names []spooldir.Name
		if err := q.spool.Scan(state, func(n spooldir.Name) bool { names = append(names, n); return true }, nil); err != nil {
			return nil, err
		}
		for _, name := range names {
			if ids[name.ID] {
				continue
			}
			m, err := q.spool.Open(state, name)
			if err != nil {
				continue // gone meanwhile, or for its worker to deal with
			}
			if q.isFor(&m.Recipients[name.N-1], u.Name) {
				ids[name.ID] = true
			}
			m.Close()
		}
	}
	return ids, nil
}

// isFor reports whether a recipient names a user.
func (q *Queue) isFor(r *spooldir.Recipient, user string) bool {
	if r.Kind != spooldir.Address {
		return r.Kind == spooldir.LocalUser && r.User == user
	}
	a, err := address.Parse(r.Address)
	if err != nil {
		return false
	}
	local, here := q.isLocal(a)
	base, _, _ := strings.Cut(local, "+")
	return here && (strings.EqualFold(local, user) || strings.EqualFold(base, user))
}
