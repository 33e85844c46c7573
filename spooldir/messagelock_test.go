package spooldir

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMessageLock: who works in this process is waited for, who works in another is
// not.
func TestMessageLock(t *testing.T) {
	s := newSpool(t)
	other, err := Open(s.Path()) // flock(2) takes it for another process
	if err != nil {
		t.Fatal(err)
	}
	name := submit(t, s, Envelope{Recipients: recipients("a@b")}, "x")[0]
	open := func(s *Spool) *Message {
		t.Helper()
		m, err := s.Open(New, name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	first, second, foreign := open(s), open(s), open(other)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lock := func(m *Message) {
		t.Helper()
		if err := m.Lock(ctx); err != nil {
			t.Fatal(err)
		}
	}
	lock(first)
	if err := foreign.Lock(ctx); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "new/"+name.String()) {
		t.Errorf("another process: %v", err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if err := second.Lock(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("for the end of the context: %v", err)
	}
	// A child of the process before its exec.
	child, err := unix.Dup(int(first.f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	got := make(chan error, 1)
	go func() { got <- second.Lock(ctx) }()
	first.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := second.Unlock(); err != nil {
		t.Fatal(err)
	}
	lock(foreign)
	if err := second.Lock(ctx); !errors.Is(err, ErrBusy) {
		t.Errorf("another process: %v", err)
	}
	foreign.Close()
	lock(second)
	second.Close()
	if len(s.locks) != 0 || len(other.locks) != 0 {
		t.Errorf("remembered: %v, %v", s.locks, other.locks)
	}
}

// TestDraftLock: a draft that holds its lock is locked until its end.
func TestDraftLock(t *testing.T) {
	s := newSpool(t)
	draft := func() *Draft {
		t.Helper()
		d, err := s.Create(&Envelope{Recipients: recipients("a@b")})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Hold(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := draft()
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	m, err := s.Open(New, d.env.Name(1))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ended, end := context.WithCancel(t.Context())
	end()
	if err := m.Lock(ended); !errors.Is(err, context.Canceled) { // it waits
		t.Errorf("while the draft is held: %v", err)
	}
	d.Close()
	if err := m.Lock(t.Context()); err != nil {
		t.Error(err)
	}
	m.Unlock()
	draft().Abort()
	if len(s.locks) != 0 {
		t.Errorf("remembered: %v", s.locks)
	}
}

// endsAfter is a context that ends when it has been asked so often.
type endsAfter struct {
	context.Context
	times int
}

func (c *endsAfter) Err() error {
	if c.times--; c.times < 0 {
		return context.Canceled
	}
	return nil
}

// TestVerifyEnds: the reading of a message ends with its context.
func TestVerifyEnds(t *testing.T) {
	s := newSpool(t)
	name := submit(t, s, Envelope{Recipients: recipients("a@b")}, strings.Repeat("0123456789abcde\n", 1<<16))[0]
	m, err := s.Open(New, name)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Verify(&endsAfter{t.Context(), 3}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := m.Verify(&endsAfter{t.Context(), 1000}); err != nil {
		t.Error(err)
	}
}
