package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/spooldir"
)

// TestStrangeIdle: an agent that sends what none should while nobody uses it costs
// its user the next one, as one that is used does. A socket with files is counted.
func TestStrangeIdle(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		name  string
		files []*os.File
		want  error
	}{
		{"an answer to no ping", nil, errProtocol},
		{"a file", []*os.File{null}, wire.ErrFiles},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conns := make(chan *wire.Conn, 1)
			serve := serving(t, double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
				for _, j := range jobs {
					done(j)
				}
			}}, alice)
			s := &starter{serve: func(ctx context.Context, c *wire.Conn, key seatKey) {
				conns <- c
				serve(ctx, c, key)
			}}
			trouble := make(chan error, 1)
			kept := wire.NewKept()
			r := remoteOf(t, RemoteOptions{
				Starter: s, Mailbox: "mbox:/var/mail/%u", Clock: newFakeClock(), Kept: kept,
				Trouble: func(_ string, _ Role, err error) { trouble <- err },
			})
			u := passwd.User{Name: "a", UID: 1000}
			deliver := func() error {
				jobs := testJobs(1, spooldir.Mailbox)
				deliverAll(t, r, u, jobs)
				return jobs[0].Err
			}
			if err := deliver(); err != nil {
				t.Fatal(err)
			}
			// As an older kernel has it, files come through.
			r.mu.Lock()
			for _, s := range r.seats {
				_ = s.link.conn.Raw(func(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1) })
			}
			r.mu.Unlock()
			if err := (<-conns).Send([]byte{pongAnswer}, tt.files...); err != nil {
				t.Fatal(err)
			}
			if err := <-trouble; !errors.Is(err, tt.want) {
				t.Errorf("trouble: %v", err)
			}
			if err := deliver(); err == nil || !strings.Contains(err.Error(), "had to be killed") {
				t.Errorf("the next delivery: %v", err)
			}
			if got := kept.Count(); got != len(tt.files) {
				t.Errorf("%d sockets are kept", got)
			}
			if started := s.started(); !slices.Equal(started, []seatKey{{"a", MailboxRole}}) {
				t.Errorf("started: %v", started)
			}
		})
	}
}
