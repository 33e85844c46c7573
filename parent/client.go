package parent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dma/agent"
	"dma/internal/passwd"
	"dma/internal/wire"
)

// The descriptors of a worker.
const (
	controlFD = 3
	setupFD   = 4
	lifeFD    = 5
)

const maxSetup = 16 << 20

// errGone says that the parent has gone.
var errGone = errors.New("the parent has gone")

// Client is a worker's side of the control socket. For the queue process it is a
// passwd.Source and an agent.Starter.
type Client struct {
	conn *wire.Conn
	done chan struct{}

	lookups, starts, passwords chan struct{} // slots

	mu      sync.Mutex
	number  uint32
	waiting map[uint32]chan message
	work    Work
}

// Work is what a worker tells the parent of its work, which may end a service
// that has nothing to do.
type Work struct {
	// Idle reports whether there is nothing to do now. Activity grows with
	// everything that is begun.
	Idle     func() bool
	Activity func() int

	// Look makes the worker look at everything once more, and not rely on having
	// been told.
	Look func()
}

var (
	_ passwd.Source = (*Client)(nil)
	_ agent.Starter = (*Client)(nil)
)

// Connect returns the Client of a process that the parent has started.
func Connect() (*Client, error) {
	conn, err := wire.Inherited(controlFD)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return NewClient(conn), nil
}

// NewClient returns a Client on a connection, which it owns.
func NewClient(conn *wire.Conn) *Client {
	conn.AcceptFiles()
	c := &Client{
		conn: conn, done: make(chan struct{}), waiting: make(map[uint32]chan message),
		lookups: make(chan struct{}, maxLookups), starts: make(chan struct{}, maxStarts), passwords: make(chan struct{}, maxPasswords),
	}
	go c.read()
	return c
}

// Done is closed when the parent has gone, or wants the process to end.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close closes the connection, upon which the parent ends the process.
func (c *Client) Close() error { return c.conn.Close() }

// Ready says that the process is at work, and where its work can be asked about.
func (c *Client) Ready(w Work) error {
	c.mu.Lock()
	c.work = w
	c.mu.Unlock()
	return c.send(message{kind: kindReady})
}

// state is the answer to a ping.
func (c *Client) state(number uint32, looks int) message {
	c.mu.Lock()
	w := c.work
	c.mu.Unlock()
	state, activity := stateBusy, 0
	if w.Activity != nil {
		activity = w.Activity()
	}
	if w.Idle != nil && w.Idle() {
		state = stateIdle
	}
	return message{number: number, kind: kindPong, fields: []string{state, strconv.Itoa(activity), strconv.Itoa(looks)}}
}

func (c *Client) send(m message) error {
	c.conn.SetWriteDeadline(time.Now().Add(time.Minute))
	return c.conn.Send(m.encode())
}

// read answers pings and hands out answers until the connection ends.
func (c *Client) read() {
	defer close(c.done)
	defer c.conn.Close()
	looks := 0
	for {
		frame, files, err := c.conn.Receive(maxAnswer, 1)
		if err != nil {
			return
		}
		m, err := decode(frame)
		if len(files) > 0 {
			m.conn = files[0]
		}
		switch {
		case err != nil:
			return
		case m.kind == kindPing:
			if c.send(c.state(m.number, looks)) != nil {
				return
			}
		case m.kind == kindLook:
			c.mu.Lock()
			look := c.work.Look
			c.mu.Unlock()
			if look != nil {
				look()
				looks++
			}
		case m.kind == kindAnswer && len(m.fields) > 0:
			c.mu.Lock()
			answer, ok := c.waiting[m.number]
			delete(c.waiting, m.number)
			c.mu.Unlock()
			if ok {
				answer <- m
			} else {
				m.discard()
			}
		}
	}
}

// ask sends a request and returns the fields of the answer after the status.
func (c *Client) ask(ctx context.Context, slots chan struct{}, m message) ([]string, error) {
	m, err := c.answer(ctx, slots, m)
	if err != nil {
		return nil, err
	}
	m.discard()
	return status(m.fields)
}

// discard closes what came with an answer.
func (m message) discard() {
	if m.conn != nil {
		wire.New(m.conn).Close()
	}
}

// answer sends a request and returns the answer.
func (c *Client) answer(ctx context.Context, slots chan struct{}, m message) (message, error) {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return message{}, ctx.Err()
	case <-c.done:
		return message{}, errGone
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	c.number++
	m.number = c.number
	c.waiting[m.number] = answer
	c.mu.Unlock()
	if err := c.send(m); err != nil {
		c.conn.Close()
		return message{}, fmt.Errorf("ask the parent: %w", err)
	}
	got := make(chan message, 1)
	go func() { // holds the slot until the parent is done with it
		defer func() { <-slots }()
		select {
		case m := <-answer:
			got <- m
		case <-c.done:
			close(got)
		}
	}()
	select {
	case m, ok := <-got:
		if !ok {
			return message{}, errGone
		}
		return m, nil
	case <-ctx.Done():
		go func() {
			late := <-got
			late.discard()
		}()
		return message{}, ctx.Err()
	}
}

// status turns an answer that is not "ok" into an error.
func status(fields []string) ([]string, error) {
	text := "no reason given"
	if len(fields) > 1 {
		text = oneLine(fields[1])
	}
	switch fields[0] {
	case statusOK:
		return fields[1:], nil
	case statusUnknown:
		return nil, passwd.ErrUnknown
	case statusBusy:
		return nil, agent.ErrBusy
	case statusRefused:
		return nil, refusal{text}
	}
	return nil, errors.New(text)
}

// refusal is an error whose text already begins with that of ErrNotServed.
type refusal struct{ text string }

func (r refusal) Error() string        { return r.text }
func (r refusal) Is(target error) bool { return target == agent.ErrNotServed }

// Lookup implements passwd.Source.
func (c *Client) Lookup(ctx context.Context, name string) (passwd.User, error) {
	if !passwd.ValidName(name) {
		return passwd.User{}, fmt.Errorf("user %q: %w", name[:min(len(name), 64)], passwd.ErrUnknown)
	}
	u, err := c.user(ctx, message{kind: kindLookup, fields: []string{name}})
	if errors.Is(err, passwd.ErrUnknown) {
		return u, fmt.Errorf("user %q: %w", name, err)
	}
	return u, err
}

// LookupID implements passwd.Source.
func (c *Client) LookupID(ctx context.Context, uid int) (passwd.User, error) {
	if _, ok := parseID(strconv.Itoa(uid)); !ok {
		return passwd.User{}, fmt.Errorf("uid %d: %w", uid, passwd.ErrUnknown)
	}
	u, err := c.user(ctx, message{kind: kindLookupID, fields: []string{strconv.Itoa(uid)}})
	if errors.Is(err, passwd.ErrUnknown) {
		return u, fmt.Errorf("uid %d: %w", uid, err)
	}
	return u, err
}

func (c *Client) user(ctx context.Context, m message) (passwd.User, error) {
	fields, err := c.ask(ctx, c.lookups, m)
	if err != nil {
		return passwd.User{}, err
	}
	return parseUser(append([]string{statusOK}, fields...))
}

// StartAgent implements agent.Starter.
func (c *Client) StartAgent(ctx context.Context, user string, role agent.Role) (*wire.Conn, error) {
	if !passwd.ValidName(user) || !role.Valid() {
		return nil, fmt.Errorf("%w: no user, or no role", agent.ErrNotServed)
	}
	m, err := c.answer(ctx, c.starts, message{kind: kindStart, fields: []string{user, string(role)}})
	if err != nil {
		return nil, err
	}
	if _, err := status(m.fields); err != nil {
		m.discard()
		return nil, err
	}
	if m.conn == nil {
		return nil, errGarbage
	}
	return wire.New(m.conn), nil
}

// StopAgent implements agent.Starter.
func (c *Client) StopAgent(ctx context.Context, user string, role agent.Role) error {
	if !passwd.ValidName(user) || !role.Valid() {
		return nil
	}
	_, err := c.ask(ctx, c.starts, message{kind: kindStop, fields: []string{user, string(role)}})
	return err
}

// Password returns what PASSWORDCMD prints for a login at a host.
func (c *Client) Password(ctx context.Context, login, host string) (string, error) {
	if !validLogin(login) || !validHost(host) {
		return "", errors.New("PASSWORDCMD: the login or the host has characters that do not go into its environment")
	}
	fields, err := c.ask(ctx, c.passwords, message{kind: kindPassword, fields: []string{login, host}})
	if err != nil {
		return "", err
	}
	if len(fields) != 1 || fields[0] == "" {
		return "", errGarbage
	}
	return fields[0], nil
}

// ReadSetup returns the setup of a process that the parent has started.
func ReadSetup() ([]byte, error) {
	unix.CloseOnExec(setupFD)
	f := os.NewFile(setupFD, "setup")
	defer f.Close()
	setup, err := io.ReadAll(io.LimitReader(f, maxSetup))
	if err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	return setup, nil
}

// Life returns a channel that is closed when the parent has gone, or wants the
// process to end.
func Life() <-chan struct{} {
	unix.CloseOnExec(lifeFD)
	f := os.NewFile(lifeFD, "life")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(io.Discard, f)
	}()
	return gone
}
