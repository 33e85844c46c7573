package sendmail

import (
	"errors"

	"dma/internal/door"
	"dma/spooldir"
)

// socketDoor is the second door: the socket of the process that serves the
// spool, which writes the message for this one.
type socketDoor struct {
	door.Client
	free error // what the server said when it was asked first
}

// openSocket finds out whether somebody answers at a socket.
func openSocket(path string) (*socketDoor, error) {
	d := &socketDoor{Client: door.Client{Path: path}}
	err := d.Client.Free()
	var r *door.Refusal
	if err != nil && !errors.As(err, &r) {
		return nil, err
	}
	d.free = err
	return d, nil
}

func (d *socketDoor) Free() error { return d.free }

// Scratch implements Door. The spool is out of reach; any folder will do where
// every user may make a file.
func (d *socketDoor) Scratch() (Scratch, error) {
	var all []error
	for _, dir := range [...]string{"/tmp", "/var/tmp", "/dev/shm"} {
		f, err := openUnnamed(dir)
		if err == nil {
			return f, nil
		}
		all = append(all, err)
	}
	return nil, errors.Join(all...)
}

// Create implements Door. The server knows its host and the caller itself.
func (d *socketDoor) Create(e *spooldir.Envelope, _ string) (Draft, error) {
	draft, err := d.Client.Create(e)
	if err != nil {
		return nil, err // not a Draft that is no draft
	}
	return draft, nil
}

// NeedsDrain implements Door: who serves the socket serves the queue.
func (d *socketDoor) NeedsDrain() bool { return false }
