package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"dma/smarthost"
	"dma/spooldir"
	"dma/states"

	"github.com/emersion/go-smtp"
)

// Deliverer hands one message to other hosts. smarthost.Relay and smarthost.Router
// are Deliverers.
type Deliverer interface {
	// Deliver tells done of recipients, by their index in m, and of their
	// outcomes, as soon as they are decided: each exactly once, before it
	// returns, and in the goroutine of the caller.
	Deliver(ctx context.Context, m smarthost.Message, done func(indices []int, outcomes []smarthost.Outcome))
	Flush() // forget back-off
	Close() // say goodbye to idle peers
}

// destinations is what a Deliverer with several destinations has besides. No name
// of one begins with an octet of zero.
type destinations interface {
	// Destinations names the destination of each recipient, "" where there is
	// none to wait for.
	Destinations(m *smarthost.Message) []string
}

// single names the destination of a Deliverer that has only one, as the server of
// the mailboxes is.
const single = "\x00"

// order is what one Deliverer gets of a message.
type order struct {
	to      Deliverer
	message smarthost.Message // the N of its recipients are those of the message in the spool
}

// handling is a message in hand.
type handling struct {
	r       *Relay
	m       *spooldir.Message
	journal *spooldir.Journal
	start   time.Time
	visit   *visit

	mu   sync.Mutex // held while outcomes are settled: one group at a time
	errs []error
}

// carryOut hands over what orders have, those of different Deliverers at the same
// time. It returns when everything has its outcome, or waits for its turn.
func (h *handling) carryOut(ctx context.Context, orders []order) error {
	by := make(map[Deliverer][]order)
	var all []Deliverer
	for _, o := range orders {
		if by[o.to] == nil {
			all = append(all, o.to)
		}
		by[o.to] = append(by[o.to], o)
	}
	var tasks []func()
	for _, d := range all {
		tasks = append(tasks, func() {
			for _, o := range by[d] {
				h.inTurn(ctx, o)
			}
		})
	}
	together(tasks)
	return errors.Join(h.errs...)
}

// together runs tasks at the same time. A panic in one of them is one here, at
// once.
func together(tasks []func()) {
	if len(tasks) == 1 {
		tasks[0]()
		return
	}
	ended := make(chan any, len(tasks))
	for _, task := range tasks {
		go func() { ended <- caught(task) }()
	}
	for range tasks {
		if v := <-ended; v != nil {
			panic(v)
		}
	}
}

func caught(task func()) (v any) {
	defer func() { v = recover() }()
	task()
	return nil
}

// inTurn hands an order over, to each destination when there is a place for the
// message. While one of them has it, the message stays in hand, and may find a
// place at another one; then the rest is left where it stands until its turn comes.
func (h *handling) inTurn(ctx context.Context, o order) {
	if h.r.turns.most == 0 {
		h.deliver(ctx, o, nil)
		return
	}
	var keys []string
	if several, ok := o.to.(destinations); ok {
		keys = several.Destinations(&o.message)
	} else {
		keys = slices.Repeat([]string{single}, len(o.message.Recipients))
	}
	if len(keys) != len(o.message.Recipients) {
		panic(states.Fatal{Reason: fmt.Sprintf("message %s: %d destinations for %d recipients", h.m.ID, len(keys), len(o.message.Recipients))})
	}
	rest := make([]int, len(keys)) // the recipients that have not been handed over
	for i := range rest {
		rest[i] = i
	}
	ended := make(chan any, len(rest))
	running := 0
	for {
		part := o
		part.message.Recipients = nil
		var of []string
		var wait []int
		placed := make(map[string]bool)
		for _, i := range rest {
			key := keys[i]
			ok, known := placed[key]
			if !known {
				ok = h.r.turns.take(h.visit, key, h.m.Name(o.message.Recipients[i].N))
				placed[key] = ok
			}
			if !ok {
				wait = append(wait, i)
				continue
			}
			part.message.Recipients, of = append(part.message.Recipients, o.message.Recipients[i]), append(of, key)
		}
		rest = wait
		if len(of) > 0 {
			running++
			go func() { ended <- caught(func() { h.deliver(ctx, part, of) }) }()
		}
		if running == 0 {
			return
		}
		select {
		case v := <-ended:
			if running--; v != nil {
				panic(v)
			}
		case <-h.visit.wake:
		}
	}
}

// deliver hands an order over and settles what comes back: every recipient exactly
// once. Where a destination is done, the message gives up its place there; keys
// are the destinations of the recipients, nil if no place is taken.
func (h *handling) deliver(ctx context.Context, o order, keys []string) {
	open := make([]bool, len(o.message.Recipients))
	of := make(map[string]int) // open recipients of a destination
	for i := range open {
		open[i] = true
		if keys != nil {
			of[keys[i]]++
		}
	}
	fatal := func(format string, args ...any) {
		panic(states.Fatal{Reason: fmt.Sprintf("message %s: ", h.m.ID) + fmt.Sprintf(format, args...)})
	}
	done := func(indices []int, outcomes []smarthost.Outcome) {
		if len(indices) != len(outcomes) {
			fatal("%d outcomes for %d recipients", len(outcomes), len(indices))
		}
		numbers := make([]int, len(indices))
		for k, i := range indices {
			if i < 0 || i >= len(open) || !open[i] {
				fatal("an outcome for recipient %d of %d, who has one or does not exist", i, len(open))
			}
			open[i], numbers[k] = false, o.message.Recipients[i].N
		}
		h.settle(ctx, numbers, outcomes)
		if keys == nil {
			return
		}
		for _, i := range indices {
			if of[keys[i]]--; of[keys[i]] == 0 {
				h.r.turns.leave(h.visit, keys[i])
			}
		}
	}
	left := func() (indices []int) {
		for i := range open {
			if open[i] {
				indices = append(indices, i)
			}
		}
		return indices
	}
	func() {
		defer func() {
			switch v := recover().(type) {
			case nil:
			case states.Fatal:
				panic(v)
			case smarthost.Unaccounted:
				panic(states.Fatal{Reason: string(v)})
			default:
				// Nobody knows how far it has come.
				err := fmt.Errorf("panic in a delivery: %v", v)
				rest := left()
				if len(rest) == 0 {
					h.r.o.Log.WorkerTrouble("net", fmt.Errorf("message %s: %w", h.m.ID, err))
					return
				}
				done(rest, slices.Repeat([]smarthost.Outcome{{
					Verdict: smarthost.Tempfail, Command: "delivery", Uncertain: true, Trouble: err,
					Reply: smtp.SMTPError{EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: strings.Map(printable, err.Error())},
				}}, len(rest)))
			}
		}()
		h.r.flushAsked()
		o.to.Deliver(ctx, o.message, done)
	}()
	if rest := left(); len(rest) > 0 {
		fatal("%d of %d recipients have no outcome", len(rest), len(open))
	}
}

// settle records one group of outcomes. Trouble with it, a panic too, is that of
// this group: what others decide must be recorded nevertheless.
func (h *handling) settle(ctx context.Context, numbers []int, outcomes []smarthost.Outcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() {
		v := recover()
		if _, fatal := v.(states.Fatal); fatal {
			panic(v)
		} else if v != nil {
			h.errs = append(h.errs, fmt.Errorf("panic while recording outcomes: %v", v))
		}
	}()
	var last error
	for i := range outcomes {
		if err := outcomes[i].Trouble; err != nil && err != last {
			h.r.o.Log.WorkerTrouble("net", fmt.Errorf("message %s: %w", h.m.ID, err))
			last = err
		}
	}
	numbers, outcomes = decided(ctx, numbers, outcomes)
	if err := h.r.settle(h.m, h.journal, numbers, outcomes, h.start); err != nil {
		h.errs = append(h.errs, err)
	}
}

// untried are the outcomes of n recipients of a message that trouble of our own
// keeps here.
func untried(n int, err error) []smarthost.Outcome {
	return slices.Repeat([]smarthost.Outcome{{
		Verdict: smarthost.Tempfail, Command: "rewriting",
		Reply: smtp.SMTPError{EnhancedCode: smtp.EnhancedCode{4, 3, 5}, Message: strings.Map(printable, err.Error())},
	}}, n)
}
